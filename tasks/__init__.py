"""Tasks of neural graphs beside optimisation, and the image data sets that all programs share.

Each task is a module of its own (`tasks.datasets`, ...); nothing is imported here.
"""
