"""How large the steps of a training should be, learned from many small trainings.

`trainings` draws trainings from seeds, `collect` measures each at several step sizes,
`collect_slopes` with other steps of the last layers. `compare` compares models on kinds
left out, `fit` writes the fitted one to a file, and `new_trainings` measures it.
"""
