"""Training in several processes: every matrix of a network has one owner among them.

A step: the gradient of each matrix goes to its owner (`exchange`), which updates
factors, eigenbases and moments, and the change goes back to all who hold a part of the
parameter (`pieces`). Owners are chosen by cost (`ownership`).
"""
