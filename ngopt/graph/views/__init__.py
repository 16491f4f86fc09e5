"""Neural graphs in other forms: edge lists, PyTorch Geometric, Lim et al. 2024."""
