"""How large the steps of a training should be, learned from many small trainings.

`trainings` draws trainings from seeds, `collect` measures each at several step sizes,
`compare` compares models on kinds left out, and `fit` writes the fitted one to a file.
"""
