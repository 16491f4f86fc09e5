"""Selection of hyperparameters over whole trainings on validation problems."""
