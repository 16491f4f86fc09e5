"""Reads published INRs: Navon et al. 2023 (DWSNets), and Zhou et al. 2023 (NFN)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.shards import Networks
from tasks.sources.foreign_files import (
    check_tensors,
    get_field,
    parse_number,
    read_files,
    read_split_file,
)

NFN_HELD_OUT = {"validation": 5000, "test": 10_000}
"""Networks of NFN's splits, at the end: test images are numbered after training
images."""


def read_dwsnets(source: Path, split: str) -> Iterator[Networks]:
    """INRs of a split file {train, val, test: {path, label}}.

    An entry may also be a list of paths, of files that have a label. Paths are relative
    to the split file's folder. Parameters are seq.{0, 1, ...}.{weight, bias}. As in our
    SIRENs, the frequency is 30 and an image is the output + 0.5.

    Raises ValueError, which names file and field, for missing or inconsistent values.
    """

    def parse(values: dict[str, Any], label: Any, index: int) -> tuple:
        if label is None:
            label = get_field(values, "label")
        params = check_tensors(
            {key: value for key, value in values.items() if key.startswith("seq.")}
        )
        params = {key.replace("seq", "layers", 1): params[key] for key in params}
        columns = {"label": int(parse_number("label", label, 0)), "index": index}
        return siren_description(params), params, columns

    rows = read_split_file(source, split, "label")
    return read_files(((*row, index) for index, row in enumerate(rows)), parse)


def read_nfn(source: Path, split: str) -> Iterator[Networks]:
    """SIRENs of a folder, NAME_{label}s/net{index}.pth, sorted by index.

    Parameters are net.{0, 1, ...}.linear.{weight, bias}, in the last layer without
    "linear". Their images are in [-1, 1]. The last layer is halved here, so that an
    image in [0, 1] is the output + 0.5, as in our SIRENs.

    Raises ValueError, which names file and field, for missing or inconsistent values.
    """

    def parse(values: dict[str, Any], label: int, index: int) -> tuple:
        params = {
            re.sub(r"^net\.(\d+)\.(linear\.)?", r"layers.\1.", key): value
            for key, value in check_tensors(values).items()
        }
        architecture = siren_description(params)
        last = len(architecture["widths"]) - 2
        for name in (f"layers.{last}.weight", f"layers.{last}.bias"):
            params[name] = get_field(params, name) / 2
        return architecture, params, {"label": label, "index": index}

    files = nfn_files(source)
    indices = split_indices(source, split, sorted(files))
    return read_files(((*files[index], index) for index in indices), parse)


def nfn_files(source: Path) -> dict[int, tuple[Path, int]]:
    """All files of a folder and their labels, by index."""
    files: dict[int, tuple[Path, int]] = {}
    for path in sorted(source.glob("*/*.pth")):
        label = re.search(r"_(\d+)s$", path.parent.name)
        number = re.fullmatch(r"net(\d+)\.pth", path.name)
        if label is None or number is None:
            raise ValueError(
                f"file '{path}': name: expected NAME_<label>s/net<index>.pth"
            )
        index = int(number[1])
        if index in files:
            raise ValueError(
                f"file '{path}': name: expected an index of its own; "
                f"got {index}, as '{files[index][0]}'"
            )
        files[index] = path, int(label[1])
    return files


def split_indices(source: Path, split: str, indices: Sequence[int]) -> Sequence[int]:
    """Indices of a split. Raises ValueError if there are too few for all splits."""
    held_out = sum(NFN_HELD_OUT.values())
    if len(indices) <= held_out:
        raise ValueError(
            f"folder '{source}': expected {held_out + 1} networks or more; "
            f"got {len(indices)}"
        )
    test = NFN_HELD_OUT["test"]
    return {
        "train": indices[:-held_out],
        "validation": indices[-held_out:-test],
        "test": indices[-test:],
    }[split]


def siren_description(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """The SIREN with the widths of parameters layers.{0, 1, ...}.{weight, bias}."""
    weights = [value for key, value in params.items() if key.endswith(".weight")]
    if not weights or any(weight.dim() != 2 for weight in weights):
        got = ", ".join(params) or "nothing"
        raise ValueError(f"expected weights of linear layers; got {got}")
    widths = [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
    return {"kind": "siren", "widths": widths}
