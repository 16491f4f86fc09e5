"""Training in several processes: every matrix has one owner among them, and large
tables can have several.

In a step, the gradient of each matrix is sent to its owner (`exchange`). The owner
updates Kronecker factors, eigenbases and moments, and sends the change to all processes
that hold a part of the parameter (`shards`). Owners are chosen by cost (`ownership`).
"""
