"""Metanets: networks that read a neural graph and predict one update for every parameter."""

from ngopt.models.feedforward import FeedForward
from ngopt.models.gnn import NeuralGraphGNN
from ngopt.models.metanet import Metanet

METANETS: dict[str, type[Metanet]] = {cls.name: cls for cls in (FeedForward, NeuralGraphGNN)}

__all__ = ["METANETS", "FeedForward", "Metanet", "NeuralGraphGNN"]
