"""Comparison of optimizers on problems: whole trainings, tables and pictures."""
