"""Models of the tasks: what they read networks with, and what they say of them."""
