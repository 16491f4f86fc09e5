"""Graphs as tensors of one device, features read from them and context written back."""
