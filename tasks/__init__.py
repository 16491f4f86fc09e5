"""Tasks of neural graphs beside optimisation, and the image data sets that all programs
share.

Tasks: `classify`, `edit`, `predict`, `represent`, and `table` for all models of one.
Networks that are data come from `inr`, `zoo` and `published`; `shards` keeps them.
Nothing is imported here.
"""
