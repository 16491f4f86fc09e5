"""Layers on neural graphs: PNA (Eq. 3 and 4), relational attention (Eq. 5), NP."""
