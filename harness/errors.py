class PlainError(RuntimeError):
    """An error that programs print as one line, without a traceback."""
