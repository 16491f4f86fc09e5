"""Neural graphs from parameters alone, or from the order of layers, without a trace."""
