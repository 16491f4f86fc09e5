"""Shared by `tasks` and `meta_train`: command line, files, ranks, data sets, tables."""
