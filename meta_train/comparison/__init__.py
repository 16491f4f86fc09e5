"""Comparison of optimizers on problems: training runs, tables and pictures."""
