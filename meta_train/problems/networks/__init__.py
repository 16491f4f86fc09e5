"""Small networks of many kinds, one module a family."""
