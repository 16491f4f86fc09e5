"""INRs that others published: DWSNets' and NFN's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.files import read_checkpoint
from tasks.shards import Networks
from tasks.sources.foreign_files import (
    beside,
    field,
    number,
    read_split_file,
    rows_of,
    single,
    tensors,
)

NFN_HELD_OUT = {"validation": 5000, "test": 10_000}
"""Images of NFN's splits, the last ones: the test images are numbered after those for
training."""


def read_dwsnets(source: Path, split: str) -> Iterator[Networks]:
    """INRs of a split file {train, val, test: {path, label}}.

    Instead of paths and labels there may be paths alone, of files that have a label.
    Paths are relative to the split file's folder. Parameters are seq.{0, 1,
    ...}.{weight, bias}; as in ours, sines are of 30 times their sums and an image is
    the output + .5.

    Raises ValueError, which names file and field, for what is missing or does not
    match.
    """
    entry = read_split_file(source, split)
    bare = [(name, None) for name in entry]
    rows = (
        bare if isinstance(entry, list) else rows_of(source, entry, ("path", "label"))
    )
    for index, (name, known) in enumerate(rows):
        path = beside(source, name)
        values = read_checkpoint(path)
        label = field(path, values, "label") if known is None else known
        found = {key: values[key] for key in values if key.startswith("seq.")}
        params = {
            key.replace("seq", "layers", 1): value
            for key, value in tensors(path, found).items()
        }
        yield single(
            path,
            siren_of(path, params),
            params,
            label=int(number(path, "label", label, least=0)),
            index=index,
        )


def read_nfn(source: Path, split: str) -> Iterator[Networks]:
    """SIRENs of a folder, NAME_{label}s/net{index}.pth, sorted by index.

    Parameters are net.{0, 1, ...}.linear.{weight, bias}, of the last layer without
    "linear". Images are in [-1, 1] there; the last layer is halved here, so that as in
    ours an image in [0, 1] is the output + .5.

    Raises ValueError, which names file and field, for what is missing or does not
    match.
    """
    found = nfn_files(source)
    for index in held_by(source, split, sorted(found)):
        path, label = found[index]
        values = tensors(path, read_checkpoint(path))
        names = {
            key: re.sub(r"^net\.(\d+)\.(linear\.)?", r"layers.\1.", key)
            for key in values
        }
        params = {names[key]: value for key, value in values.items()}
        architecture = siren_of(path, params)
        last = f"layers.{len(architecture['widths']) - 2}."
        for key in ("weight", "bias"):
            name = last + key
            params[name] = field(path, params, name) / 2
        yield single(path, architecture, params, label=label, index=index)


def nfn_files(source: Path) -> dict[int, tuple[Path, int]]:
    """All files of a folder by their indices, with their labels."""
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted(source.glob("*/*.pth")):
        index, place = nfn_place(path)
        if index in found:
            raise ValueError(
                f"file '{path}': name: expected an index of its own; "
                f"got {index}, as '{found[index][0]}'"
            )
        found[index] = place
    return found


def nfn_place(path: Path) -> tuple[int, tuple[Path, int]]:
    """The index of a file, with the file and its label."""
    label = re.search(r"_(\d+)s$", path.parent.name)
    index = re.fullmatch(r"net(\d+)\.pth", path.name)
    if label is None or index is None:
        raise ValueError(f"file '{path}': name: expected NAME_<label>s/net<index>.pth")
    return int(index[1]), (path, int(label[1]))


def held_by(source: Path, split: str, numbers: Sequence[int]) -> Sequence[int]:
    """The numbers of a split. Raises ValueError if there are too few for all of them."""
    validation = len(numbers) - sum(NFN_HELD_OUT.values())
    test = len(numbers) - NFN_HELD_OUT["test"]
    if validation < 1:
        expected = f"{sum(NFN_HELD_OUT.values()) + 1} networks or more"
        raise ValueError(f"folder '{source}': expected {expected}; got {len(numbers)}")
    return {
        "train": numbers[:validation],
        "validation": numbers[validation:test],
        "test": numbers[test:],
    }[split]


def siren_of(path: Path, params: Mapping[str, Tensor]) -> dict[str, Any]:
    """The SIREN that has parameters layers.{0, 1, ...}.{weight, bias} of these widths."""
    weights = [value for key, value in params.items() if key.endswith(".weight")]
    if not weights or any(weight.dim() != 2 for weight in weights):
        got = ", ".join(params) or "nothing"
        raise ValueError(f"file '{path}': expected weights of linear layers; got {got}")
    return {
        "kind": "siren",
        "widths": [
            weights[0].shape[1],
            *(weight.shape[0] for weight in weights),
        ],
    }
