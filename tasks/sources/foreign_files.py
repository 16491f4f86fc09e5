"""Reads files of other projects, without running code from them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from harness.files import read_checkpoint, read_json
from tasks.networks.architectures import make_module
from tasks.shards import Networks, check_parameters

SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
"""Names of our splits in split files."""
CALLED_AT_ONCE = 256
ADVICE = "python -m tasks.published --help describes the files of each format."


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Errors in what a file holds become a ValueError, which names the file."""
    try:
        yield
    except Exception as error:  # of torch, numpy and pandas, of many types
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"expected a value {reason}; got none"
        elif "expected" not in reason:
            reason = f"expected a file of this format; got: {reason}"
        raise ValueError(f"file '{path}': {reason.rstrip('.')}. {ADVICE}") from error


def read_split_file(source: Path, split: str) -> pd.DataFrame:
    """A row for each network of a split, from a JSON file {train, val, test: {path, and
    other columns}}, where a list is that of the paths. Paths are relative to the file's
    folder."""
    entries = read_json(source, "split file")
    with file_errors(source):
        entry = entries[SPLIT_NAMES[split]]
        table = pd.DataFrame({"path": entry} if isinstance(entry, list) else entry)
        table["path"] = [source.parent / path for path in table["path"]]
    return table


def parse_number(name: str, value: Any, low: float = 0, high: float = inf) -> float:
    """A finite number within bounds, or the text of one. Raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not low <= number <= high or number == inf:
        raise ValueError(
            f"{name}: expected a number from {low:g} to {high:g}; got {value!r}"
        )
    return number


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
        with file_errors(path):
            architecture, params, columns = parse(values, *arguments)
            for name, value in params.items():
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    got = getattr(value, "dtype", type(value).__name__)
                    raise ValueError(
                        f"{name}: expected a tensor of real numbers; got {got}"
                    )
            networks = checked_networks(
                architecture,
                {name: value[None] for name, value in params.items()},
                {key: torch.tensor([value]) for key, value in columns.items()},
            )
        yield networks


@torch.no_grad()
def checked_networks(
    architecture: Mapping[str, Any],
    params: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
) -> Networks:
    """Networks of a file, with parameters in the architecture's order.

    Raises ValueError for parameters that do not fit the architecture or are not finite,
    and for networks whose outputs for a random input are not finite. Networks that
    cannot run raise torch's errors.
    """
    with torch.device("meta"):
        module = make_module(architecture)
    expected = {name: p.shape for name, p in module.named_parameters()}
    check_parameters(expected, params)
    ordered = {name: params[name].float() for name in expected}
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(module.example_input().shape, generator=generator)
    run = vmap(partial(functional_call, module, args=inputs), chunk_size=CALLED_AT_ONCE)
    is_finite = run(ordered).isfinite().flatten(1).all(1)
    if not is_finite.all():
        runs = columns.get("run", torch.arange(len(is_finite)))
        raise ValueError(
            f"network {runs[~is_finite][0]}: expected finite outputs; got others"
        )
    return Networks(architecture, ordered, columns)
