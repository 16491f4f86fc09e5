"""What a user may write: a metanet, and a model of networks."""

from dataclasses import dataclass

from ngopt.metanets import FeedForward
from tasks.baselines.mlp import FlatMLP


class Halved(FeedForward):
    """An FF that makes half of its steps; it inherits the name "ff"."""

    def updates(self, features, context):
        return super().updates(features, context) / 2


@dataclass(frozen=True)
class FlatConfig:
    hidden: tuple[int, ...] = (8,)
    dropout: float = 0.0


class Flat(FlatMLP):
    name = "flat"
    Config = FlatConfig


class NoModel:
    """Neither."""
