"""Networks that are data: their architectures, symmetries and changes, one at a time or
stacked."""
