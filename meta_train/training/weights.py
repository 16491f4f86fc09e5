"""The weights that a meta-training begins with, and the recipe stored with them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from harness.random import seeded
from meta_train.training.rules import as_learned
from ngopt.metanets import METANETS, FeedForward, GraphMetanet, Metanet
from ngopt.metanets.imported import find_metanet
from ngopt.pretrained import load_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


def make_learned(
    name: str, init_from: str | None, numbers: Mapping[str, float], seed: int
) -> LearnedOptimizer:
    """A learned optimizer from weights, or with a randomly initialized metanet.

    name: of a registered metanet, or module:Class, which is imported. init_from: the
    name of bundled weights or a file; those of an FF become another metanet's head.
    numbers: of the metanet's config. seed: of random weights.

    Raises ValueError if the metanet, the weights or a number is unknown, or they do not
    fit.
    """
    cls = find_metanet(name, METANETS, may_import=True)
    changes = _config_changes(cls, numbers)
    with seeded(seed, 12):
        if init_from is None:
            return LearnedOptimizer(cls(cls.Config(**changes)))
        learned = as_learned(load_pretrained(init_from))
        start = learned.metanet
        has_graph = isinstance(start, GraphMetanet)
        if (
            isinstance(start, FeedForward)
            and not has_graph
            and issubclass(cls, GraphMetanet)
        ):
            hidden = changes.get("hidden", start.config.hidden)
            if hidden != start.config.hidden:
                raise ValueError(
                    f"metanet_config: hidden: expected {start.config.hidden[0]}, as in "
                    f"the weights '{init_from}'; got {hidden[0]}"
                )
            return replace(learned, metanet=_from_feedforward(cls, start, changes))
    if type(start) is not cls:
        raise ValueError(
            f"weights '{init_from}': expected metanet '{name}'; got '{start.name}'"
        )
    try:
        return replace(learned, metanet=start.reconfigured(**changes))
    except RuntimeError as error:  # other shapes
        raise ValueError(
            f"metanet_config: expected numbers that fit the weights '{init_from}'; "
            f"got {changes}"
        ) from error


def _from_feedforward(
    cls: type[GraphMetanet], feedforward: FeedForward, changes: Mapping[str, Any]
) -> GraphMetanet:
    """One that predicts what the FF predicts: the weights of the context are zero.

    changes: Fields of the config, but `hidden`.
    """
    hidden = feedforward.config.hidden
    config = {**asdict(feedforward.config), **changes, "hidden": hidden}
    metanet = cls(cls.Config(**config))
    state = feedforward.head.state_dict()
    first = state["layers.0.weight"]  # (hidden, 14)
    of_context = first.new_zeros(len(first), metanet.config.d_out)
    state["layers.0.weight"] = torch.cat([first, of_context], dim=1)
    metanet.head.load_state_dict(state)
    return metanet


def with_stage(
    learned: LearnedOptimizer, program: str, details: Mapping[str, Any]
) -> LearnedOptimizer:
    """The same weights with one more stage in their recipe."""
    stage = {"program": program, **details}
    return replace(learned, recipe={"stages": [*learned.recipe["stages"], stage]})


def _config_changes(cls: type[Metanet], numbers: Mapping[str, float]) -> dict[str, Any]:
    """Numbers of a metanet's config with the types of its fields."""
    try:
        defaults = asdict(cls.Config())
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"metanet '{cls.__name__}': expected Config, a dataclass whose fields have "
            f"defaults; got: {error}"
        ) from error
    known = []
    for key, value in defaults.items():
        if isinstance(value, int | float) or key == "hidden":
            known.append(key)
    changes: dict[str, Any] = {}
    for key, number in numbers.items():
        if key not in known:
            raise ValueError(
                f"metanet_config: expected some of {', '.join(known)}; got '{key}'"
            )
        if key == "hidden":
            changes[key] = (int(number), int(number))
        else:
            changes[key] = type(defaults[key])(number)
    return changes
