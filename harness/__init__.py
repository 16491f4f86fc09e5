"""What `tasks` and `meta_train` share: command line, files, ranks, data sets, tables."""
