"""Tasks on the parameters of neural networks, beside optimisation.

Programs: `classify`, `edit`, `predict`, `represent`, and `table` to compare all models
on one of these tasks. `inr`, `zoo` and `published` make folders of networks, in the
format of `shards`. Nothing is imported here.
"""
