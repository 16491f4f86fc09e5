"""NGOptimizer in other libraries, which are imported when a function needs them."""
