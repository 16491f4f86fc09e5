"""A feature vector of the whole graph (Lim et al. 2024)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class GlobalFeature(nn.Module):
    """One vector for each whole graph (Lim et al. 2024, Eq. 3 to 5).

    u <- u + linear(silu(linear([u, mean of nodes, mean of edges]))). Then a linear map
    of u is added to all nodes, and one to all edges, of its graph.

    Shapes: u and the means `(*batch, graphs, width)`.
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(3 * width, width)
        self.outer = nn.Linear(width, width)
        self.to_nodes = nn.Linear(width, width, bias=False)
        self.to_edges = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor, nodes: Tensor, edges: Tensor) -> Tensor:
        return u + self.outer(silu(self.inner(torch.cat([u, nodes, edges], dim=-1))))
