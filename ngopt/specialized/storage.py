"""Base rules with rates: in a weights file, and in words."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder
from ngopt.specialized.rates import Rates

HandRule = Soap | FirstOrder
TENSORS = "knots", "hidden", "output"


def rates_of(rule: Any) -> Rates | None:
    multiplier = getattr(rule, "multiplier", None)
    return multiplier if isinstance(multiplier, Rates) else None


def to_json(rule: Any, rates: Rates) -> str:
    """All but tensors, recipe and table, of a rule with rates."""
    base = replace(rule, multiplier=None)
    settings = asdict(base.config) if isinstance(base, Soap) else asdict(base)
    parts = {"base": settings, "shapes": rates.shapes, "horizons": rates.horizons}
    return json.dumps(parts)


def tensors_of(rates: Rates) -> dict[str, Tensor]:
    named = {key: getattr(rates, key) for key in TENSORS}
    return {key: x for key, x in named.items() if x is not None}


def from_file(
    text: str, tensors: Mapping[str, Tensor], recipe: Any, table: Any
) -> HandRule:
    """From `to_json` and `tensors_of`. Raises ValueError if they are of another
    version."""
    parts = json.loads(text)
    try:
        shapes = tuple(map(tuple, parts["shapes"]))
        horizons = tuple(parts["horizons"])
        rates = Rates(
            **tensors, shapes=shapes, horizons=horizons, recipe=recipe, table=table
        )
        if "step_size" in parts["base"]:
            return Soap(SoapConfig(**parts["base"]), rates)
        return replace(FirstOrder(**parts["base"]), multiplier=rates)
    except TypeError as error:
        raise ValueError(f"specialized rule of another version: {error}") from None


def description_of(rule: Any) -> str:
    """Of a `HandRule`, for messages and tables; without rates."""
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
