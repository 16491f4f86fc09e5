"""A rule for one family of training runs: a base rule, and rates that were learned."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import BoundRule, UpdateRule
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder
from ngopt.specialized.rates import Rates, place_between
from ngopt.user_warnings import warn

HandRule = Soap | FirstOrder


@dataclass(frozen=True, eq=False)
class Specialized(UpdateRule):
    """A base rule with rates, for the networks and horizons that they were learned on.

    For other shapes, for horizons outside of the range and without a horizon it is the
    base rule, and a UserWarning says why.

    Attributes:
        base: Without rates.
        shapes: Of the parameters, in their order.
        horizons: The shortest and the longest.
        recipe: JSON, how it was made. table: JSON, what was measured with it.
    """

    base: HandRule
    rates: Rates
    shapes: tuple[tuple[int, ...], ...]
    horizons: tuple[int, int]
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)

    reads_connections = False

    @property
    def weight_decay(self) -> float:  # type: ignore[override]
        return self.base.weight_decay

    def for_network(self, graph: NeuralGraph, total_steps: int | None) -> UpdateRule:
        """The base rule, with rates where they apply."""
        shortest, longest = self.horizons
        if total_steps is None or not shortest <= total_steps <= longest:
            reason = f"total_steps from {shortest} to {longest}; got {total_steps}"
        elif (shapes := tuple(tuple(x.shape) for x in graph.parameters)) != self.shapes:
            reason = f"parameters of shapes {self.shapes}; got {shapes}"
        else:
            place = place_between(self.horizons, total_steps)
            return with_rates(self.base, self.rates.at(place))
        warn(
            f"specialized rule: expected {reason}. This run has its base rule, "
            f"{description_of(self.base)}."
        )
        return self.base

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> BoundRule:
        rule = self.for_network(graph, total_steps)
        return rule.bind(graph, total_steps, device=device, dtype=dtype)

    def to_json(self) -> str:
        """All but tensors, recipe and table."""
        base = self.base.config if isinstance(self.base, Soap) else self.base
        parts = {"base": asdict(base), "shapes": self.shapes, "horizons": self.horizons}
        return json.dumps(parts)

    def tensors(self) -> dict[str, Tensor]:
        named = {key: getattr(self.rates, key) for key in ("knots", "hidden", "output")}
        return {key: x for key, x in named.items() if x is not None}

    @classmethod
    def of(
        cls, text: str, tensors: Mapping[str, Tensor], *records: Mapping[str, Any]
    ) -> "Specialized":
        """From `to_json` and `tensors`; records: recipe and table.

        Raises ValueError if they are of another version.
        """
        parts = json.loads(text)
        try:
            is_soap = "step_size" in parts["base"]
            kind = SoapConfig if is_soap else FirstOrder
            base = kind(**parts["base"])
            rates = Rates(**tensors)
        except TypeError as error:
            raise ValueError(f"specialized rule of another version: {error}") from None
        shapes = tuple(map(tuple, parts["shapes"]))
        base = Soap(base) if isinstance(base, SoapConfig) else base
        return cls(base, rates, shapes, tuple(parts["horizons"]), *records)


def with_rates(rule: HandRule, rates: Rates | None) -> HandRule:
    if isinstance(rule, Soap):
        return Soap(rule.config, rates)
    return replace(rule, rates=rates)


def description_of(rule: HandRule) -> str:
    """For messages and tables."""
    if isinstance(rule, Soap):
        scale = rule.config.step_size / SoapConfig().step_size
        if replace(rule.config, step_size=SoapConfig().step_size) != SoapConfig():
            return f"SOAP (step_size {rule.config.step_size:.3g})"
        return "the default" if scale == 1 else f"the default with scale={scale:.3g}"
    name = "Muon" if rule.uses_muon else "Adam"
    return (
        f"{name} (lr {rule.lr:.3g}, betas {rule.beta1:g} and {rule.beta2:g}, "
        f"{rule.schedule})"
    )
