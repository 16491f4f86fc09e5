"""Programs and problems to start from; they run in a checkout."""
