"""Weights files: safetensors whose metadata name base rule, metanet and cooldown,
recipe and measured table.

Reading one touches no network and unpickles nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngopt.metanets import METANETS, Metanet
from ngopt.metanets.imported import find_metanet, metanet_name
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import BASES, LearnedOptimizer
from ngopt.pretrained.tensor_files import digest, is_intact, read_tensors, write_tensors

FORMAT = "ngopt-2"
FOLDER = Path(__file__).parent
NONE = "none"  # stands for no base rule, and for no metanet


def list_pretrained() -> list[str]:
    """Names of the weights bundled in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(weights: str | os.PathLike = "default") -> LearnedOptimizer:
    """The learned optimizer of a bundled weights file (by name) or of a file (by path).

    Its metanet is in float32 on the CPU and needs no gradients. A file that names a
    metanet of your own, "module:Class", is loaded if its module is imported already:
    reading a file imports nothing.

    Raises ValueError if there is no such name or file, if the file is damaged, or if
    its format, base rule, metanet or a config is not one that this version knows.
    """
    path = _resolve(weights)
    metadata, tensors = read_tensors(path, "weights file")
    if metadata.get("format") != FORMAT:
        got = metadata.get("format")
        raise ValueError(
            f"weights file '{path}': expected format '{FORMAT}'; got {got!r}"
        )
    if not is_intact(metadata, tensors):
        raise ValueError(
            f"weights file '{path}': its contents do not have the SHA-256 that it records"
        )
    base = _build(path, "base rule", BASES, metadata["base"], metadata["base_config"])
    known = _metanets(path, metadata["metanet"])
    metanet = _build(path, "metanet", known, metadata["metanet"], metadata["config"])
    if metanet is not None:
        metanet.float()  # whatever torch's default dtype is
        try:
            metanet.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"weights file '{path}': tensors do not fit its config: {error}"
            ) from None
        metanet.requires_grad_(False)
    cooldown = (
        Cooldown(**json.loads(metadata["cooldown"])) if "cooldown" in metadata else None
    )
    recipe = json.loads(metadata["recipe"])
    table = json.loads(metadata["table"])
    return LearnedOptimizer(base, metanet, cooldown, recipe, table)


def as_learned(weights: Any) -> LearnedOptimizer:
    """The learned optimizer that is meant by one, by a metanet, or by a name or a path.

    Raises ValueError for anything else, and as `load_pretrained` does.
    """
    if isinstance(weights, LearnedOptimizer):
        return weights
    if isinstance(weights, Metanet):
        return LearnedOptimizer(metanet=weights)
    if not isinstance(weights, str | os.PathLike):
        raise ValueError(
            "NGOptimizer: weights: expected a name, a path, a LearnedOptimizer or a metanet; got "
            f"{type(weights).__name__}"
        )
    return load_pretrained(weights)


def are_named(weights: Any, expected: str) -> bool:
    """Whether weights, given as `as_learned` takes them and not as a hash, have this
    hash."""
    if weights is None or weights == expected:
        return False
    try:
        return weights_hash(as_learned(weights)) == expected
    except ValueError:
        return False


def save_pretrained(learned: LearnedOptimizer, path: str | os.PathLike) -> None:
    """Writes a weights file, all of it or nothing."""
    tensors = _tensors(learned)
    metadata = {
        "format": FORMAT,
        **_description(learned),
        "recipe": json.dumps(learned.recipe),
        "table": json.dumps(learned.table),
    }
    write_tensors(Path(path), metadata, tensors)


def weights_hash(learned: LearnedOptimizer) -> str:
    """Identifies what computes: SHA-256 over base rule, metanet, their configs,
    cooldown and the tensors.

    Recipe and table, and the device and dtype that the metanet is in, make no
    difference.
    """
    return digest(_description(learned), _tensors(learned))


def _description(learned: LearnedOptimizer) -> dict[str, str]:
    """Names and configs of base rule and metanet, and the cooldown where there is one,
    as the metadata have them."""
    base, metanet, cooldown = learned.base, learned.metanet, learned.cooldown
    described = {
        "base": NONE if base is None else base.name,
        "base_config": json.dumps({} if base is None else asdict(base.config)),
        "metanet": NONE if metanet is None else metanet_name(metanet, METANETS),
        "config": json.dumps({} if metanet is None else asdict(metanet.config)),
    }
    return (
        described
        if cooldown is None
        else {**described, "cooldown": json.dumps(asdict(cooldown))}
    )


def _tensors(learned: LearnedOptimizer) -> dict[str, Tensor]:
    state = {} if learned.metanet is None else learned.metanet.state_dict()
    return {
        key: value.detach().to("cpu", torch.float32).contiguous()
        for key, value in state.items()
    }


def _resolve(weights: str | os.PathLike) -> Path:
    if weights in list_pretrained():
        return FOLDER / f"{weights}.safetensors"
    path = Path(weights)
    if path.is_file():
        return path
    known = ", ".join(list_pretrained())
    raise ValueError(
        f"weights '{os.fspath(weights)}': expected one of {known}, or an existing weights file; "
        f"got neither"
    )


def _metanets(path: Path, name: str) -> Mapping[str, type[Metanet]]:
    """The registered metanets, and the imported one that a file names as
    "module:Class"."""
    if ":" not in name:
        return METANETS
    try:
        return {**METANETS, name: find_metanet(name, METANETS)}
    except ValueError as error:
        raise ValueError(f"weights file '{path}': {error}") from None


def _build(
    path: Path, what: str, known: Mapping[str, type], name: str, config: str
) -> Any:
    """A base rule or a metanet from its name and config; None for "none"."""
    if name == NONE:
        return None
    if name not in known:
        names = ", ".join([*known, NONE])
        raise ValueError(
            f"weights file '{path}': expected a {what} out of {names}; got {name!r}"
        )
    cls: Any = known[name]
    values = {
        k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(config).items()
    }
    odd = sorted(values.keys() ^ {field.name for field in fields(cls.Config)})
    if odd:
        raise ValueError(
            f"weights file '{path}': expected the config of this version's {what} '{name}'; got "
            f"one that differs in {', '.join(odd)}"
        )
    return cls(cls.Config(**values))
