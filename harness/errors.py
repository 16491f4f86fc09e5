class PlainError(RuntimeError):
    """An error whose message says all that a user needs: programs print it alone."""
