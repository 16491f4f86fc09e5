"""A learned optimizer as a whole: a hand-designed base rule, a metanet, or both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ngopt.base.soap import Soap
from ngopt.cooldown import Cooldown
from ngopt.functional import UpdateRule
from ngopt.graph.core import NeuralGraph
from ngopt.metanet_rule import MetanetRule
from ngopt.models.metanet import Metanet


class BaseRule(Protocol):
    """A hand-designed rule, made as `cls(config)`; `Config` is a frozen dataclass of numbers."""

    name: str
    Config: type
    config: Any

    def bind(
        self, graph: NeuralGraph, modulation: Any, total_steps: int | None
    ) -> UpdateRule:
        """The rule on a graph; a modulation of None is the identity.

        total_steps: the horizon where it is known.
        """
        ...


BASES: dict[str, type] = {Soap.name: Soap}
"""The base rules that weights files can name."""


@dataclass(frozen=True, eq=False)
class LearnedOptimizer:
    """What a weights file holds.

    base: the hand-designed rule. metanet: what modulates it or, without a base (the paper's
        optimizers), predicts the updates; None beside a base is the identity.
    cooldown: of the updates of a metanet without a base, which does not know how long a training
        is; None keeps them as they are.
    recipe, table: how the weights were made (`stages`, the last one the newest) and what was
        measured with them, JSON.

    Raises ValueError if there is neither a base nor a metanet, or beside a base a cooldown, as it
    has a schedule of its own, or a metanet that predicts updates where the base takes factors.
    """

    base: BaseRule | None = None
    metanet: Metanet | None = None
    cooldown: Cooldown | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base is None and self.metanet is None:
            raise ValueError(
                "LearnedOptimizer: expected a base rule or a metanet; got neither"
            )
        if isinstance(self.base, Soap) and isinstance(self.metanet, Metanet):
            expected = (
                "a modulation beside 'soap' (ngopt.base.modulation) or nothing"
            )
            raise ValueError(
                f"LearnedOptimizer: expected {expected}; got metanet '{self.metanet.name}'"
            )
        if self.base is not None and self.cooldown is not None:
            raise ValueError(
                f"LearnedOptimizer: expected no cooldown beside a base rule; got {self.cooldown}"
            )

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> UpdateRule:
        """The update rule on a graph.

        total_steps: the horizon where it is known. device, dtype: of a copy of the metanet; with
            neither the rule has the metanet itself, so that an unroll differentiates by it.
        """
        metanet = self.metanet
        if metanet is not None and (device is not None or dtype is not None):
            metanet = (
                copy.deepcopy(metanet).to(device=device, dtype=dtype).eval()
            )
        if self.base is not None:
            return self.base.bind(graph, metanet, total_steps)
        assert metanet is not None
        return MetanetRule(metanet, graph, self.cooldown, total_steps)
