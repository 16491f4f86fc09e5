"""Models that predict properties of networks, or edit their parameters."""
