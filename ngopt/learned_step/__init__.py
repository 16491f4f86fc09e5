"""Learned factors of the step sizes of `ngopt.soap`, as a multiplier."""
