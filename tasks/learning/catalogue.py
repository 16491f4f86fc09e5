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
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    types = {k: type(v) for k, v in values.items() if isinstance(v, int | float)}
    unknown = sorted(set(sizes) - set(types))
    if unknown:
        raise ValueError(
            f"{type(config).__name__}: expected sizes among {', '.join(types)}; "
            f"got {', '.join(unknown)}"
        )
    changes = {key: types[key](value) for key, value in sizes.items()}
    for key, value in sizes.items():
        if value < 0 or changes[key] != value:
            number = "number" if types[key] is float else "whole number"
            raise ValueError(
                f"sizes: {key}: expected a {number} of 0 or more; got {value}"
            )
    return replace(config, **changes)
