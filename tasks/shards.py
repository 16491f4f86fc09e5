"""Networks as data: folders of shards, which are safetensors files, and a manifest.

A shard holds stacked parameters of networks, in groups of one architecture each, and
the SHA-256 of its contents. It is written whole or not at all, so that the program that
makes a folder can resume. The manifest has the settings of that program and statistics
of the networks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness.files import make_folder, read_json, write_json
from harness.settings import check_settings
from ngopt.pretrained.tensor_files import read_tensors, write_tensors

FORMAT = "ngopt-shard-1"
MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
DAMAGED_ADVICE = "Run the command that made the folder to make the shard again."


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of one architecture.

    architecture: description of the module, JSON. params: by name, (n, *shape).
    columns: other data of each network, by name, (n, *).

    Raises ValueError if tensors have different lengths.
    """

    architecture: Mapping[str, Any]
    params: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        tensors = (*self.params.values(), *self.columns.values())
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(
                "networks: expected tensors of one length; "
                f"got lengths {sorted(lengths)}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))


def write_shard(path: Path, groups: Sequence[Networks]) -> None:
    """Writes a shard, all of it or nothing."""
    tensors = {}
    for number, group in enumerate(groups):
        for part in ("params", "columns"):
            for key, value in getattr(group, part).items():
                tensors[f"{number}.{part}.{key}"] = value.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "architectures": json.dumps([dict(group.architecture) for group in groups]),
    }
    write_tensors(path, metadata, tensors)


def read_shard(path: Path) -> list[Networks]:
    """The groups of a shard.

    Raises ValueError, which names file and field, if it is damaged or not of this
    format.
    """
    metadata, tensors = read_tensors(path, "shard", FORMAT)
    groups = [
        {"architecture": architecture, "params": {}, "columns": {}}
        for architecture in json.loads(metadata["architectures"])
    ]
    for key, value in tensors.items():
        number, part, name = key.split(".", 2)
        groups[int(number)][part][name] = value
    return [Networks(**group) for group in groups]


@dataclass(frozen=True)
class Folder:
    """A folder of shards that were made with the same settings.

    settings: all that the networks depend on, JSON.
    """

    path: Path
    settings: Mapping[str, Any]

    def begin(self) -> None:
        """Makes the folder and its manifest. Raises ValueError if it has shards of
        other settings, or of none that are known."""
        make_folder(self.path)
        if not shard_paths(self.path):
            self._write_manifest([])
            return
        stored = read_manifest(self.path)["settings"]
        check_settings(f"folder '{self.path}'", stored, self.settings)

    def shard(self, split: str, number: int) -> Path:
        return self.path / f"{split}-{number:05d}.safetensors"

    def finish(self, quality: Sequence[str]) -> list[dict[str, Any]]:
        """Writes the manifest: networks of each shard, and means of quality columns."""
        rows = []
        for path in shard_paths(self.path):
            groups = read_shard(path)
            means = {key: fmean(column_of(groups, key).tolist()) for key in quality}
            rows.append({"file": path.name, "networks": sum(map(len, groups)), **means})
        self._write_manifest(rows)
        return rows

    def _write_manifest(self, rows: list[dict[str, Any]]) -> None:
        manifest = {"format": FORMAT, "settings": dict(self.settings), "shards": rows}
        write_json(self.path / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ValueError if there is no folder, or no manifest of this format."""
    if not folder.is_dir():
        raise ValueError(
            f"folder '{folder}': expected a folder of networks; got none. "
            "tasks.inr fit, tasks.zoo train and tasks.published make one."
        )
    path = folder / MANIFEST
    manifest = read_json(path, "manifest")
    stored = manifest.get("format") if isinstance(manifest, dict) else None
    if stored != FORMAT:
        raise ValueError(
            f"manifest '{path}': format: expected '{FORMAT}'; got {stored!r}"
        )
    for key, kind in (("settings", dict), ("shards", list)):
        if not isinstance(manifest.get(key), kind):
            raise ValueError(
                f"manifest '{path}': {key}: expected a {kind.__name__}; "
                f"got {manifest.get(key)!r}"
            )
    return manifest


def read_settings(folder: Path, program: str) -> dict[str, Any]:
    """The settings of a folder. Raises ValueError if another program made it."""
    settings = read_manifest(folder)["settings"]
    maker = settings.get("program")
    if maker != program:
        raise ValueError(
            f"folder '{folder}': expected networks of {program}; got those of {maker}"
        )
    return settings


def shard_paths(folder: Path, split: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{split}-*.safetensors"))


def read_split(folder: Path, split: str) -> Iterator[Networks]:
    """All groups of a split, shard by shard. Prints if the folder is not finished.

    Raises ValueError if the split has no shard, or for a shard that is damaged or
    missing.
    """
    files = [folder / row["file"] for row in read_manifest(folder)["shards"]]
    listed = {path for path in files if path.match(f"{split}-*")}
    paths = sorted(listed.union(shard_paths(folder, split)))
    if not paths:
        raise ValueError(
            f"folder '{folder}': expected shards of split '{split}'; got none"
        )
    if len(paths) > len(listed):
        tqdm.write(
            f"folder '{folder}': not finished: split '{split}' has {len(paths)} "
            f"shards, {len(listed)} of them in the manifest"
        )
    for path in paths:
        try:
            groups = read_shard(path)
        except ValueError as error:
            raise ValueError(f"{error}. {DAMAGED_ADVICE}") from None
        yield from groups


def check_parameters(
    expected: Mapping[str, Sequence[int]], params: Mapping[str, Tensor]
) -> None:
    """Compares parameters of several networks, (n, *shape), with expected shapes.

    Raises ValueError, which names the first parameter that is missing, unexpected, of
    another shape or not finite.
    """
    for name in sorted({*expected, *params}):
        wanted = tuple(expected[name]) if name in expected else "no such parameter"
        got = tuple(params[name].shape[1:]) if name in params else "none"
        if wanted != got:
            raise ValueError(f"{name}: expected shape {wanted}; got {got}")
        if not params[name].isfinite().all():
            raise ValueError(f"{name}: expected finite numbers; got others")


def check_column(
    folder: str, columns: Mapping[str, Tensor], key: str, most: float
) -> None:
    """Raises ValueError if a column is missing, or not from 0 to `most`."""
    if key not in columns:
        raise ValueError(
            f"folder '{folder}': expected networks with a column '{key}'; got none"
        )
    values = columns[key]
    outside = values[~((values >= 0) & (values <= most))]
    if len(outside):
        raise ValueError(
            f"folder '{folder}': {key}: expected 0 to {most:g}; "
            f"got {outside[0].item():g}"
        )


def merged(groups: Sequence[Networks]) -> Networks:
    """Networks of one architecture, together. Raises ValueError for several
    architectures."""
    first = groups[0]
    for group in groups:
        if group.architecture != first.architecture:
            raise ValueError(
                f"networks: expected architecture {first.architecture}; "
                f"got {group.architecture}"
            )
    params = {
        name: torch.cat([group.params[name] for group in groups])
        for name in first.params
    }
    columns = {key: column_of(groups, key) for key in first.columns}
    return Networks(first.architecture, params, columns)


def merged_by_architecture(groups: Iterable[Networks]) -> list[Networks]:
    """One group for each architecture, in the order of their first groups."""
    by_architecture: dict[str, list[Networks]] = {}
    for group in groups:
        by_architecture.setdefault(str(group.architecture), []).append(group)
    return list(map(merged, by_architecture.values()))


def column_of(groups: Sequence[Networks], key: str) -> Tensor:
    """One column of several groups, (n,)."""
    return torch.cat([group.columns[key] for group in groups])
