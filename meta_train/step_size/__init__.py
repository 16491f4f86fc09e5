"""How large the steps of a training should be, learned from many small trainings.

`trainings` draws trainings from seeds, `collect` measures each at other step sizes,
`fit` writes a predictor and compares it on kinds left out, `check` measures a file.
"""
