"""Trains a problem of the user with several optimizers: `ngopt race module:problem`."""
