"""Files that others made: nothing in them is run, and what they hold is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from harness.files import read_json
from tasks.networks.architectures import make_module
from tasks.shards import Networks, check_parameters

AT_ONCE = 64
"""Networks of one forward pass."""
SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
"""How split files call ours."""


def read_split_file(path: Path, split: str) -> Any:
    """The entry of a split in a JSON file.

    Raises ValueError, which names file and field, for what is no JSON and for a missing
    split.
    """
    found = read_json(path, "split file")
    name = SPLIT_NAMES[split]
    if not isinstance(found, dict) or name not in found:
        raise ValueError(
            f"split file '{path}': {name}: expected a split of this name; got none"
        )
    return found[name]


def rows_of(path: Path, entry: Mapping[str, Any], keys: Sequence[str]) -> list[tuple]:
    """What a split file says of each of its networks: lists under several keys, side by
    side.

    Raises ValueError, which names file and field, if one is missing, no list or of
    another length.
    """
    lists = [listed(path, key, field(path, entry, key)) for key in keys]
    for key, values in zip(keys, lists, strict=True):
        if len(values) != len(lists[0]):
            expected = f"{len(lists[0])} values, as of {keys[0]}"
            raise ValueError(
                f"file '{path}': {key}: expected {expected}; got {len(values)}"
            )
    return list(zip(*lists, strict=True))


def field(path: Path, values: Mapping[str, Any], *keys: str) -> Any:
    """A value inside nested dictionaries of a file.

    Raises ValueError, which names file and field, if there is none.
    """
    found: Any = values
    for place, key in enumerate(keys):
        if not isinstance(found, Mapping) or key not in found:
            told = ".".join(keys[: place + 1])
            raise ValueError(f"file '{path}': {told}: expected a value; got none")
        found = found[key]
    return found


def listed(path: Path, name: str, value: Any) -> list:
    """A list in a file. Raises ValueError, which names file and field, for anything
    else."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"file '{path}': {name}: expected a list; got {value!r}")
    return list(value)


def number(
    path: Path, name: str, value: Any, least: float = -inf, most: float = inf
) -> float:
    """A number in a file, or text that says one.

    Raises ValueError, which names file and field, for none and for one out of bounds.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = nan
    if not isfinite(found) or not least <= found <= most:
        raise ValueError(
            f"file '{path}': {name}: expected a number from {least:g} to {most:g}; got {value!r}"
        )
    return found


def whole_numbers(path: Path, name: str, value: Any, least: int) -> list[int]:
    """A list of whole numbers in a file, each so large.

    Raises ValueError, which names file and field, for anything else.
    """
    return [int(number(path, name, one, least)) for one in listed(path, name, value)]


def beside(path: Path, name: Any) -> Path:
    """A file that a split file names, relative to its folder."""
    if not isinstance(name, str):
        raise ValueError(f"file '{path}': path: expected names of files; got {name!r}")
    return path.parent / name


def tensors(path: Path, values: Any) -> dict[str, Tensor]:
    """Parameters of a file by name.

    Raises ValueError, which names file and parameter, for what holds anything but real
    numbers.
    """
    if not isinstance(values, Mapping):
        got = type(values).__name__
        raise ValueError(f"file '{path}': expected parameters by name; got {got}")
    for name, value in values.items():
        is_tensor = isinstance(value, Tensor)
        if not is_tensor or value.is_complex() or value.dim() == 0:
            got = str(value.dtype) if is_tensor else type(value).__name__
            raise ValueError(
                f"file '{path}': {name}: expected a tensor of real numbers; got {got}"
            )
    return dict(values)


def single(
    path: Path,
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    **columns: float,
) -> Networks:
    """One network of a file.

    columns: what is known of it.

    Raises ValueError, which names file and parameter, for parameters that are not those
    of the architecture or not finite, and for a network that cannot run or whose
    outputs are not finite.
    """
    stacked = {name: value[None] for name, value in params.items()}
    known = {key: torch.tensor([value]) for key, value in columns.items()}
    return checked(path, architecture, stacked, known)


def checked(
    path: Path,
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
) -> Networks:
    """Networks of a file, their parameters in the architecture's order.

    Raises ValueError as `single` does.
    """
    expected = shapes(path, architecture)
    check_parameters(f"file '{path}'", expected, params)
    own = {name: params[name].float() for name in expected}
    check_outputs(path, architecture, own, columns.get("run"))
    return Networks(architecture, own, columns)


@torch.no_grad()
def check_outputs(
    path: Path,
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    rows: Tensor | None,
) -> None:
    """One forward pass of each network on a random input.

    rows: numbers of the networks in the file; None where it has one. Raises ValueError,
    which names the file and the number, for the first network that cannot run or whose
    outputs are not finite.
    """
    module = make_module(architecture)
    inputs = random_like(module.example_input())
    count = len(next(iter(params.values())))
    for places in torch.arange(count).split(AT_ONCE):
        some = {name: value[places] for name, value in params.items()}
        which = [network_name(path, rows, place) for place in places.tolist()]
        try:
            outputs = vmap(partial(functional_call, module), (0, None))(some, inputs)
        except RuntimeError as error:
            shape = tuple(inputs.shape)
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{which[0]}: expected a network that runs on inputs of shape {shape}; got: "
                f"{reason}"
            ) from None
        is_finite = outputs.flatten(1).isfinite().all(1)
        if not is_finite.all():
            odd = which[int(is_finite.int().argmin())]
            raise ValueError(f"{odd}: expected finite outputs; got others")


def random_like(example: Tensor) -> Tensor:
    """The same numbers at each call, uniform in [0, 1)."""
    return torch.rand(example.shape, generator=torch.Generator().manual_seed(0))


def network_name(path: Path, rows: Tensor | None, place: int) -> str:
    """A network of a file, for messages."""
    return f"file '{path}'" + ("" if rows is None else f": network {rows[place]}")


def shapes(path: Path, architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of an architecture's parameters by name, in its order."""
    try:
        with torch.device("meta"):
            module = make_module(architecture)
    except ValueError as error:
        raise ValueError(f"file '{path}': {error}") from None
    return {name: tuple(p.shape) for name, p in module.named_parameters()}
