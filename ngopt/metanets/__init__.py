"""Metanets: networks that read a neural graph and predict one update for every
parameter."""

from ngopt.metanets.feedforward import FeedForward
from ngopt.metanets.gnn import NeuralGraphGNN
from ngopt.metanets.graph_metanet import GraphMetanet
from ngopt.metanets.lstm import LayerLSTM
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.nfn import NeuralFunctional
from ngopt.metanets.transformer import NeuralGraphTransformer

KNOWN = FeedForward, LayerLSTM, NeuralFunctional, NeuralGraphGNN, NeuralGraphTransformer
METANETS: dict[str, type[Metanet]] = {cls.name: cls for cls in KNOWN}

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
