"""Checks values from files of other projects, without running code from them.

For missing or invalid values, all functions raise ValueError, which names the field or
parameter. `prefixed_errors` adds the file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from harness.errors import prefixed_errors
from harness.files import read_checkpoint, read_json
from tasks.networks.architectures import make_module
from tasks.shards import Networks, check_parameters

SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
"""Names of our splits in split files."""


def read_split_file(source: Path, split: str, *keys: str) -> list[tuple]:
    """Paths of a split's networks, and their other values, from a JSON file.

    The entry of a split has columns, `path` and `keys`, which are lists of equal
    length. If it is a list, it is that of the paths, and other values are None. Paths
    are relative to the file's folder.
    """
    entries = read_json(source, "split file")
    name = SPLIT_NAMES[split]
    with prefixed_errors(f"split file '{source}'"):
        if not isinstance(entries, dict) or name not in entries:
            raise ValueError(f"{name}: expected a split of this name; got none")
        entry = entries[name]
        if isinstance(entry, list):
            entry = {"path": entry, **dict.fromkeys(keys, [None] * len(entry))}
        paths = check_list("path", get_field(entry, "path"))
        for path in paths:
            if not isinstance(path, str):
                raise ValueError(f"path: expected names of files; got {path!r}")
        columns = [check_list(key, get_field(entry, key)) for key in keys]
        for key, values in zip(keys, columns, strict=True):
            if len(values) != len(paths):
                raise ValueError(
                    f"{key}: expected {len(paths)} values, as of path; "
                    f"got {len(values)}"
                )
    return list(zip([source.parent / path for path in paths], *columns, strict=True))


def get_field(values: Any, *keys: str) -> Any:
    """A value inside nested dictionaries."""
    for depth, key in enumerate(keys, 1):
        if not isinstance(values, Mapping) or key not in values:
            raise ValueError(f"{'.'.join(keys[:depth])}: expected a value; got none")
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
        raise ValueError(f"expected parameters by name; got {type(values).__name__}")
    for name, value in values.items():
        is_tensor = isinstance(value, Tensor)
        if not is_tensor or value.is_complex() or value.dim() == 0:
            got = value.dtype if is_tensor else type(value).__name__
            raise ValueError(f"{name}: expected a tensor of real numbers; got {got}")
    return dict(values)


def read_files(
    files: Iterable[tuple],
    parse: Callable[..., tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]],
) -> Iterator[Networks]:
    """The networks of files of torch.save with one each, see `checked_networks`.

    files: paths, each with other arguments of `parse`.
    parse: content of a file -> description, parameters, and values for columns.
    """
    for path, *arguments in files:
        values = read_checkpoint(path)
        with prefixed_errors(f"file '{path}'"):
            architecture, params, columns = parse(values, *arguments)
            yield checked_networks(
                architecture,
                {name: value[None] for name, value in params.items()},
                {key: torch.tensor([value]) for key, value in columns.items()},
            )


@torch.no_grad()
def checked_networks(
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
) -> Networks:
    """Networks of a file, with parameters in the architecture's order.

    columns: if there are several networks, `run` has their numbers, for errors.

    Raises ValueError for parameters that do not fit the architecture or are not finite,
    and for a network that does not run on a random input or has non-finite outputs.
    """
    with torch.device("meta"):
        module = make_module(architecture)
    expected = {name: p.shape for name, p in module.named_parameters()}
    check_parameters(expected, params)
    networks = Networks(
        architecture, {name: params[name].float() for name in expected}, columns
    )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(module.example_input().shape, generator=generator)
    for index in range(len(networks)):
        network = {name: value[index] for name, value in networks.params.items()}
        which = f"network {columns['run'][index]}: " if "run" in columns else ""
        try:
            outputs = functional_call(module, network, inputs)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{which}expected a network that runs on inputs of shape "
                f"{tuple(inputs.shape)}; got: {reason}"
            ) from None
        if not outputs.isfinite().all():
            raise ValueError(f"{which}expected finite outputs; got others")
    return networks
