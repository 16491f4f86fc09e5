"""Selection of hyperparameters over whole training runs on validation problems."""
