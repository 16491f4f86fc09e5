"""Reads published INRs: Navon et al. 2023 (DWSNets), and Zhou et al. 2023 (NFN)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from tasks.shards import Networks
from tasks.sources.foreign_files import parse_number, read_files, read_split_file

NFN_HELD_OUT = {"validation": 5000, "test": 10_000}
"""Networks of NFN's splits, at the end: test images are numbered after training
images."""


def read_dwsnets(source: Path, split: str) -> Iterator[Networks]:
    """INRs of a split file. As in our SIRENs, the frequency is 30 and an image is the
    output + 0.5. Raises ValueError, which names the file, for missing or inconsistent
    values."""

    def parse(values: dict[str, Any], label: Any, index: int) -> tuple:
        label = values["label"] if pd.isna(label) else label
        params = {
            key.replace("seq", "layers", 1): value
            for key, value in values.items()
            if key.startswith("seq.")
        }
        columns = {"label": int(parse_number("label", label)), "index": index}
        return siren_description(params), params, columns

    table = read_split_file(source, split)
    table["index"] = range(len(table))
    files = table.reindex(columns=["path", "label", "index"])
    return read_files(files.itertuples(index=False), parse)


def read_nfn(source: Path, split: str) -> Iterator[Networks]:
    """SIRENs of a folder, sorted by index.

    Their images are in [-1, 1]. The last layer is halved here, so that an image in
    [0, 1] is the output + 0.5, as in our SIRENs.

    Raises ValueError, which names the file, for missing or inconsistent values, and if
    there are too few networks for all splits.
    """

    def parse(values: dict[str, Any], label: int, index: int) -> tuple:
        params = {
            re.sub(r"^net\.(\d+)\.(linear\.)?", r"layers.\1.", key): value
            for key, value in values.items()
        }
        architecture = siren_description(params)
        last = len(architecture["widths"]) - 2
        for name in (f"layers.{last}.weight", f"layers.{last}.bias"):
            params[name] = params[name] / 2
        return architecture, params, {"label": label, "index": index}

    files = nfn_files(source)
    indices = sorted(files)
    validation, test = NFN_HELD_OUT["validation"], NFN_HELD_OUT["test"]
    if len(indices) <= validation + test:
        raise ValueError(
            f"folder '{source}': expected {validation + test + 1} networks or more, "
            f"NAME_<label>s/net<index>.pth; got {len(indices)}"
        )
    parts = {
        "train": indices[: -validation - test],
        "validation": indices[-validation - test : -test],
        "test": indices[-test:],
    }
    return read_files([(*files[index], index) for index in parts[split]], parse)


def nfn_files(source: Path) -> dict[int, tuple[Path, int]]:
    """All files of a folder and their labels, by index."""
    files: dict[int, tuple[Path, int]] = {}
    for path in sorted(source.glob("*/*.pth")):
        match = re.search(r"_(\d+)s/net(\d+)\.pth$", path.as_posix())
        if match is None or int(match[2]) in files:
            raise ValueError(
                f"file '{path}': expected a name NAME_<label>s/net<index>.pth, with an "
                "index that no other file has; got another"
            )
        files[int(match[2])] = path, int(match[1])
    return files


def siren_description(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """The SIREN with the widths of parameters layers.{0, 1, ...}.{weight, bias}."""
    shapes = [v.shape for key, v in params.items() if key.endswith(".weight")]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        got = ", ".join(params) or "nothing"
        raise ValueError(f"expected weights of linear layers; got {got}")
    return {"kind": "siren", "widths": [shapes[0][1], *(shape[0] for shape in shapes)]}
