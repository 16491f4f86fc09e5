"""Everything that has to be measured on a GPU, in one command: see `__main__`."""
