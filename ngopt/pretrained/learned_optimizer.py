"""A learned optimizer as a whole: a hand-designed base rule or a metanet."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ngopt.functional import UpdateRule, uncompiled
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.stepping.rule import MetanetRule
from ngopt.soap.soap import Soap

BASES: dict[str, type[Soap]] = {Soap.name: Soap}
"""The base rules that weights files can name."""


@dataclass(frozen=True, eq=False)
class LearnedOptimizer:
    """The contents of a weights file: a base rule or a metanet.

    Attributes:
        base: The hand-designed rule.
        metanet: Predicts the updates (the paper's optimizers).
        cooldown: A schedule for the metanet's updates; None leaves them constant.
        recipe: JSON, how the weights were made (`stages`, the newest last).
        table: JSON, what was measured with them.

    Raises:
        ValueError: If there is neither a base nor a metanet, or both.
        ValueError: For a cooldown beside a base, which has its own schedule.
    """

    base: Soap | None = None
    metanet: Metanet | None = None
    cooldown: Cooldown | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base is None and self.metanet is None:
            raise ValueError(
                "LearnedOptimizer: expected a base rule or a metanet; got neither"
            )
        if self.base is not None and self.metanet is not None:
            raise ValueError(
                "LearnedOptimizer: expected a base rule or a metanet; got base "
                f"'{self.base.name}' and metanet '{self.metanet.name}'"
            )
        if self.base is not None and self.cooldown is not None:
            raise ValueError(
                "LearnedOptimizer: expected no cooldown beside a base rule; got "
                f"{self.cooldown}"
            )

    @property
    def weight_decay(self) -> float:
        """Its own, decoupled, in AdamW's units: of groups with `weight_decay=None`."""
        return getattr(self.base, "weight_decay", 0.0)

    @property
    def reads_connections(self) -> bool:
        """Whether an update depends on the connections of the graph."""
        return self.metanet is not None

    @property
    def can_be_sharded(self) -> bool:
        """Whether several processes can divide its work and state."""
        return self.base is not None

    @property
    def chooses_dtype(self) -> bool:
        """Whether `bind` without a dtype computes in one that the rule chooses."""
        return self.base is not None

    @property
    def squares_gradients(self) -> bool:
        """Whether squares of gradients, which overflow in float16, are computed."""
        return self.base is not None

    @uncompiled
    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> UpdateRule:
        """The update rule on a graph.

        Args:
            total_steps: The horizon, if known.
            device, dtype: The rule computes with a copy of the metanet there. With
                neither it uses the metanet itself, so that an unroll can differentiate
                by it. A base rule ignores `device`; its `compute_dtype` is `dtype`.
        """
        if self.base is not None:
            return self.base.bind(graph, total_steps, compute_dtype=dtype)
        metanet = self.metanet
        assert metanet is not None
        if device is not None or dtype is not None:
            metanet = copy.deepcopy(metanet).to(device=device, dtype=dtype).eval()
        return MetanetRule(metanet, graph, self.cooldown, total_steps)
