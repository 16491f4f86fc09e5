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
from ngopt.specialized.rates import Rates
from ngopt.user_warnings import warn

BASES = {"soap": SoapConfig, "first_order": FirstOrder}


@dataclass(frozen=True, eq=False)
class Specialized(UpdateRule):
    """The base rule with rates, for networks and horizons that it was learned on.

    For other shapes, for horizons outside of the range and without a horizon it is the
    base rule, and a UserWarning says why.

    Attributes:
        base: Without rates.
        rates: See `Rates`.
        shapes: Of the parameters, in their order.
        horizons: The shortest and the longest.
        recipe: JSON, how it was made. table: JSON, what was measured with it.
    """

    base: Soap | FirstOrder
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
        reason = self._refusal(graph, total_steps)
        if reason is not None:
            warn(f"specialized rule: {reason}. It is its base rule: {self.base_name}.")
            return self.base
        if isinstance(self.base, Soap):
            return Soap(self.base.config, self.rates)
        return replace(self.base, rates=self.rates)

    @property
    def base_name(self) -> str:
        if isinstance(self.base, Soap):
            scale = self.base.config.step_size / SoapConfig().step_size
            return f"the default, steps {scale:.3g} times as long"
        base = self.base
        return (
            f"{base.kind} with lr {base.lr:.3g}, betas {base.beta1:g} and "
            f"{base.beta2:g}, {base.schedule} schedule"
        )

    def _refusal(self, graph: NeuralGraph, total_steps: int | None) -> str | None:
        """Why the rates do not apply; None if they do."""
        shapes = tuple(tuple(spec.shape) for spec in graph.parameters)
        shortest, longest = self.horizons
        if total_steps is None:
            return f"expected total_steps from {shortest} to {longest}; got none"
        if not shortest <= total_steps <= longest:
            return (
                f"expected total_steps from {shortest} to {longest}, for which it was "
                f"learned; got {total_steps}"
            )
        if len(shapes) != len(self.shapes):
            return f"expected {len(self.shapes)} parameters; got {len(shapes)}"
        for spec, expected in zip(graph.parameters, self.shapes, strict=True):
            if tuple(spec.shape) != expected:
                return (
                    f"expected a network of the shapes that it was learned on; "
                    f"'{spec.name}' has {tuple(spec.shape)}, not {expected}"
                )
        return None

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

    def description(self) -> str:
        """JSON of all but tensors, recipe and table."""
        is_soap = isinstance(self.base, Soap)
        settings = asdict(self.base.config) if is_soap else asdict(self.base)  # type: ignore
        settings.pop("rates", None)
        return json.dumps(
            {
                "base": "soap" if is_soap else "first_order",
                "settings": settings,
                "shapes": self.shapes,
                "horizons": self.horizons,
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        named = {key: getattr(self.rates, key) for key in ("knots", "hidden", "output")}
        return {key: x for key, x in named.items() if x is not None}

    @classmethod
    def of(
        cls,
        description: str,
        tensors: Mapping[str, Tensor],
        recipe: Mapping[str, Any],
        table: Mapping[str, Any],
    ) -> "Specialized":
        """From `description` and `tensors`.

        Raises ValueError if they are of another version.
        """
        parts = json.loads(description)
        if parts["base"] not in BASES or "knots" not in tensors:
            raise ValueError(
                f"specialized rule: expected one of {', '.join(BASES)} and knots; got "
                f"{parts['base']!r} and {', '.join(sorted(tensors))}"
            )
        try:
            settings = BASES[parts["base"]](**parts["settings"])
        except TypeError as error:
            raise ValueError(f"specialized rule: {error}") from None
        return cls(
            Soap(settings) if isinstance(settings, SoapConfig) else settings,
            Rates(**tensors),
            tuple(map(tuple, parts["shapes"])),
            tuple(parts["horizons"]),
            recipe,
            table,
        )
