"""A learned optimizer: a metanet that predicts the updates."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ngopt.functional import BoundRule, UpdateRule, uncompiled
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.stepping.rule import MetanetRule


@dataclass(frozen=True, eq=False)
class LearnedOptimizer(UpdateRule):
    """The rule of a metanet (the paper's optimizers).

    Attributes:
        metanet: Predicts the updates.
        cooldown: A schedule for the updates; None leaves them constant.
        recipe: JSON, how the weights were made (`stages`, the newest last).
        table: JSON, what was measured with them.
    """

    metanet: Metanet
    cooldown: Cooldown | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)

    @uncompiled
    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> BoundRule:
        """The update rule on a graph.

        Args:
            total_steps: The horizon, if known.
            device, dtype: The rule computes with a copy of the metanet there. With
                neither it uses the metanet itself, so that an unroll can differentiate
                by it.
        """
        metanet = self.metanet
        if device is not None or dtype is not None:
            metanet = copy.deepcopy(metanet).to(device=device, dtype=dtype).eval()
        return MetanetRule(metanet, graph, self.cooldown, total_steps)
