"""Families of training runs for `ngopt specialize`."""
