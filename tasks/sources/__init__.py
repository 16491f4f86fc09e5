"""Sources of networks: published files, and fits and trainings of our own."""
