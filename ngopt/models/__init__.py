"""Metanets: networks that read a neural graph and predict one update for every parameter.

A metanet is a module with a `config` and `forward(features, graph)`, which maps the features of all
parameters, (*batch, numel, 14) in the order of `NeuralGraph.flatten`, to updates (*batch, numel).
"""

from dataclasses import replace
from typing import Any

from torch import nn

from ngopt.models.feedforward import FeedForward
from ngopt.models.gnn import NeuralGraphGNN

METANETS = {"ff": FeedForward, "ng-gnn": NeuralGraphGNN}

__all__ = ["METANETS", "FeedForward", "NeuralGraphGNN", "reconfigure"]


def reconfigure(metanet: nn.Module, **changes: Any) -> nn.Module:
    """A copy of a metanet, with the same weights, in which some fields of the config are changed."""
    copy = type(metanet)(replace(metanet.config, **changes))
    copy.load_state_dict(metanet.state_dict())
    copy.recipe = getattr(metanet, "recipe", None)
    return copy
