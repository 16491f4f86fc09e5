"""Meta-training: unrolls, estimators of the meta-gradient, and the outer loop."""
