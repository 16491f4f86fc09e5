"""Sources of networks: published files, our fits and our training runs."""
