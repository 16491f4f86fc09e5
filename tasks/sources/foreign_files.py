"""Checks values from files of other projects, without running code from them.

For missing or invalid values, all functions raise ValueError, which names the field or
parameter. `prefixed_errors` adds the file.
"""

from collections.abc import Mapping
from functools import partial
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from harness.errors import prefixed_errors
from harness.files import read_json
from tasks.networks.architectures import make_module
from tasks.networks.input_network import InputNetwork
from tasks.shards import Networks, check_parameters

AT_ONCE = 64
"""Networks of one forward pass."""
SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
"""Names of our splits in split files."""


def read_split_file(path: Path, split: str) -> Any:
    """The entry of a split in a JSON file."""
    entries = read_json(path, "split file")
    name = SPLIT_NAMES[split]
    if not isinstance(entries, dict) or name not in entries:
        raise ValueError(
            f"split file '{path}': {name}: expected a split of this name; got none"
        )
    return entries[name]


def path_rows(source: Path, entry: Any, *keys: str) -> list[tuple]:
    """Paths of networks, and their other values, from columns of a split file.

    The columns are lists of equal length. Paths are relative to the file's folder.
    """
    with prefixed_errors(f"file '{source}'"):
        names = check_list("path", get_field(entry, "path"))
        columns = []
        for key in keys:
            values = check_list(key, get_field(entry, key))
            if len(values) != len(names):
                raise ValueError(
                    f"{key}: expected {len(names)} values, as of path; "
                    f"got {len(values)}"
                )
            columns.append(values)
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"path: expected names of files; got {name!r}")
    paths = [source.parent / name for name in names]
    return list(zip(paths, *columns, strict=True))


def get_field(values: Any, *keys: str) -> Any:
    """A value inside nested dictionaries."""
    for depth, key in enumerate(keys, 1):
        if not isinstance(values, Mapping) or key not in values:
            name = ".".join(keys[:depth])
            raise ValueError(f"{name}: expected a value; got none")
        values = values[key]
    return values


def check_list(name: str, value: Any) -> list:
    """A list or tuple, as a list."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list; got {value!r}")
    return list(value)


def parse_number(
    name: str, value: Any, minimum: float = -inf, maximum: float = inf
) -> float:
    """A number within bounds, or the text of one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number) or not minimum <= number <= maximum:
        raise ValueError(
            f"{name}: expected a number from {minimum:g} to {maximum:g}; got {value!r}"
        )
    return number


def check_tensors(values: Any) -> dict[str, Tensor]:
    """Parameters by name, all of them tensors of real numbers."""
    if not isinstance(values, Mapping):
        got = type(values).__name__
        raise ValueError(f"expected parameters by name; got {got}")
    for name, value in values.items():
        is_tensor = isinstance(value, Tensor)
        if not is_tensor or value.is_complex() or value.dim() == 0:
            got = str(value.dtype) if is_tensor else type(value).__name__
            raise ValueError(f"{name}: expected a tensor of real numbers; got {got}")
    return dict(values)


def single_network(
    architecture: Mapping[str, Any], params: Mapping[str, Tensor], **columns: float
) -> Networks:
    """The only network of a file, see `checked_networks`. columns: values of it."""
    stacked = {name: value[None] for name, value in params.items()}
    known = {key: torch.tensor([value]) for key, value in columns.items()}
    return checked_networks(architecture, stacked, known)


def checked_networks(
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
) -> Networks:
    """Networks of a file, with parameters in the architecture's order.

    Raises ValueError for parameters that do not fit the architecture or are not finite,
    and for a network that does not run or has non-finite outputs.
    """
    with torch.device("meta"):
        module = make_module(architecture)
    expected = {name: p.shape for name, p in module.named_parameters()}
    check_parameters(expected, params)
    own = {name: params[name].float() for name in expected}
    check_outputs(module, own, columns.get("run"))
    return Networks(architecture, own, columns)


@torch.no_grad()
def check_outputs(
    module: InputNetwork, params: Mapping[str, Tensor], rows: Tensor | None
) -> None:
    """Runs each network on a random input.

    rows: the networks' numbers in the file; None if it has one network.

    Raises ValueError, which names the network, if it does not run or its outputs are
    not finite.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(module.example_input().shape, generator=generator)
    run = vmap(partial(functional_call, module), (0, None))
    count = len(next(iter(params.values())))
    for index in torch.arange(count).split(AT_ONCE):
        chunk = {name: value[index] for name, value in params.items()}
        try:
            outputs = run(chunk, inputs)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{network_name(rows, index[0])}expected a network that runs "
                f"on inputs of shape {tuple(inputs.shape)}; got: {reason}"
            ) from None
        is_finite = outputs.flatten(1).isfinite().all(1)
        if not is_finite.all():
            name = network_name(rows, index[is_finite.int().argmin()])
            raise ValueError(f"{name}expected finite outputs; got others")


def network_name(rows: Tensor | None, index: Tensor) -> str:
    """The start of a message; empty for the only network of a file."""
    return "" if rows is None else f"network {rows[index]}: "
