"""Meta-training: learns the optimizers of `ngopt` by unrolling them on training
problems."""
