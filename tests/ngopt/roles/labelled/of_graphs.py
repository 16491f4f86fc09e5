"""Small networks of PyTorch Geometric, for graphs with features of nodes."""

from typing import Any

import torch
from torch import nn

EDGES = torch.tensor([[0, 1, 2, 3, 3, 4], [1, 2, 3, 0, 4, 2]])


def nodes() -> torch.Tensor:
    return torch.randn(5, 12)


def gcn() -> tuple[nn.Module, Any]:
    from torch_geometric.nn import models

    return models.GCN(12, 24, num_layers=2, out_channels=7), (nodes(), EDGES)


def graphsage() -> tuple[nn.Module, Any]:
    from torch_geometric.nn import models

    model = models.GraphSAGE(12, 24, num_layers=2, out_channels=7, norm="batch_norm")
    return model, (nodes(), EDGES)


def gat() -> tuple[nn.Module, Any]:
    from torch_geometric.nn import models

    model = models.GAT(12, 24, num_layers=2, out_channels=7, heads=3)
    return model, (nodes(), EDGES)


def graph_transformer() -> tuple[nn.Module, Any]:
    import torch_geometric.nn as pyg

    with_edges = "x, edges, features -> x"
    model = pyg.Sequential(
        "x, edges, features",
        [
            (pyg.TransformerConv(12, 8, heads=3, edge_dim=6), with_edges),
            nn.ReLU(),
            (
                pyg.TransformerConv(
                    24, 10, heads=4, concat=False, beta=True, edge_dim=6
                ),
                with_edges,
            ),
            nn.ReLU(),
            nn.Linear(10, 7),
        ],
    )
    return model, (nodes(), EDGES, torch.randn(EDGES.shape[1], 6))
