"""All models of the tasks by name: ours and the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ngopt.metanets.imported import find_class
from tasks.baselines import BASELINES
from tasks.models.base import NetworkModel
from tasks.models.gmn import GMN
from tasks.models.ng_gnn import NGGNN
from tasks.models.ng_t import NGT
from tasks.networks.architectures import Architecture

MODELS: dict[str, type[NetworkModel]] = {
    model.name: model for model in (NGGNN, NGT, GMN, *BASELINES)
}


def make_model(
    name: str,
    architectures: Sequence[Architecture],
    d_out: int,
    sizes: Mapping[str, float],
    edits: bool = False,
) -> NetworkModel:
    """A reader or an editor, see `NetworkModel`.

    name: one of `MODELS`, or module:Class of your own, which is imported: a
    `NetworkModel` that is made as ours are, whose attribute `Config` is the dataclass
    of its numbers.
    sizes: numbers of its config. Raises ValueError for an unknown model or size.
    """
    model = MODELS.get(name)
    if model is None:
        model = find_class("model", name, list(MODELS), NetworkModel, may_import=True)
    config = getattr(model, "Config", None)
    if not is_dataclass(config):
        raise ValueError(
            f"model '{name}': expected an attribute Config, a dataclass; got {config!r}"
        )
    return model(architectures, d_out, configured(model.Config(), sizes), edits=edits)


def configured(config: Any, sizes: Mapping[str, float]) -> Any:
    """A config with some numbers changed.

    Raises ValueError for unknown fields, negative numbers, and fractions in a field of
    whole numbers.
    """
    known = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if isinstance(value, int | float):
            known[one.name] = type(value)
    odd = sorted(set(sizes) - set(known))
    if odd:
        name = type(config).__name__
        raise ValueError(
            f"{name}: expected sizes among {', '.join(known)}; got {', '.join(odd)}"
        )
    changes = {}
    for key, value in sizes.items():
        changes[key] = known[key](value)
        if value < 0 or changes[key] != value:
            whole = "number" if known[key] is float else "whole number"
            raise ValueError(
                f"sizes: {key}: expected a {whole} of 0 or more; got {value}"
            )
    return replace(config, **changes)
