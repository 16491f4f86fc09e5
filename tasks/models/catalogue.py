"""All models of the tasks by name, ours and those they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import nn

from tasks.architectures import Architecture
from tasks.models.graph_models import KINDS, GraphModelConfig, GraphReader
from tasks.models.standardise import Standardise

READERS = KINDS

Config = TypeVar("Config")


def make_reader(
    name: str,
    example: Architecture,
    standardise: Standardise,
    d_out: int,
    sizes: Mapping[str, float],
) -> nn.Module:
    """A model from stacks of networks to (b, d_out).

    sizes: fields of its config. Raises ValueError for an unknown name or size.
    """
    if name not in READERS:
        raise ValueError(f"model: expected one of {', '.join(READERS)}; got '{name}'")
    config = configured(GraphModelConfig(), sizes)
    return GraphReader(name, example, standardise, d_out, config)


def configured(config: Config, sizes: Mapping[str, float]) -> Config:
    """A config with some numbers changed. Raises ValueError for one that it does not have."""
    known = {one.name: type(getattr(config, one.name)) for one in fields(config)}  # type: ignore[arg-type]
    odd = sorted(set(sizes) - set(known))
    if odd:
        raise ValueError(f"{type(config).__name__}: expected sizes among {', '.join(known)}; got {', '.join(odd)}")
    changes: dict[str, Any] = {key: known[key](value) for key, value in sizes.items()}
    return replace(config, **changes)  # type: ignore[type-var]
