"""How large the steps of a training should be, learned from many small trainings.

`trainings` draws trainings from seeds, `collect` measures each at several step sizes.
"""
