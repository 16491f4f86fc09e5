"""How models learn a task: settings, budget, validation, checkpoints."""
