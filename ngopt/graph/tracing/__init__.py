"""Follows a network function by function: which neurons and parameters every tensor holds."""
