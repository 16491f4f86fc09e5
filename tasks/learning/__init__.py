"""Trains models on tasks: settings, budget, validation, checkpoints."""
