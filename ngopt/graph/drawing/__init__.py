"""Drawings of neural graphs; matplotlib is imported when one is made."""
