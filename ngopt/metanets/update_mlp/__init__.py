"""The MLP from features and context of a parameter to its update."""
