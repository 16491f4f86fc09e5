"""Metanets: networks that read a neural graph and predict one update for every parameter."""

from ngopt.models.feedforward import FeedForward
from ngopt.models.gnn import NeuralGraphGNN
from ngopt.models.graph_metanet import GraphMetanet
from ngopt.models.lstm import LayerLSTM
from ngopt.models.metanet import Metanet
from ngopt.models.nfn import NeuralFunctional
from ngopt.models.transformer import NeuralGraphTransformer

METANETS: dict[str, type[Metanet]] = {
    cls.name: cls
    for cls in (
        FeedForward,
        LayerLSTM,
        NeuralFunctional,
        NeuralGraphGNN,
        NeuralGraphTransformer,
    )
}

__all__ = [
    "METANETS",
    "FeedForward",
    "GraphMetanet",
    "LayerLSTM",
    "Metanet",
    "NeuralFunctional",
    "NeuralGraphGNN",
    "NeuralGraphTransformer",
]
