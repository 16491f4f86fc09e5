"""Input networks, whose parameters are the data of the tasks: architectures, stacks,
augmentation, canonical form."""
