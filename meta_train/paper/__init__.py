"""The tables and figures of Kofinas et al. 2024."""
