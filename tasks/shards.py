"""Networks as data: folders of shards, safetensors files that hold stacked parameters,
with a manifest.

A shard holds networks in groups of one architecture each. It records the SHA-256 of its
contents, so that a damaged one is noticed, and is written whole or not at all, so that
what makes a folder can be resumed. The manifest says how the networks were made and
what they are worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness.files import make_folder, read_json, write_json
from harness.run_store import check_settings
from ngopt.pretrained.tensor_files import is_intact, read_tensors, write_tensors

FORMAT = "ngopt-shard-1"
MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
WAYS_OUT = (
    "Pass --skip-damaged to leave it out, or run the command that made the folder again, which "
    "makes it again."
)
"""What to do about a shard that cannot be read."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of one architecture.

    architecture: what makes the module, JSON. params: by name, (n, *shape). columns:
    what is known of each, by name, (n, *).

    Raises ValueError if the tensors are not of the same number of networks.
    """

    architecture: Mapping[str, Any]
    params: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {
            len(value) for value in (*self.params.values(), *self.columns.values())
        }
        if len(lengths) != 1:
            raise ValueError(
                f"networks: expected tensors of one length; got lengths {sorted(lengths)}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))


def write_shard(path: Path, groups: Sequence[Networks]) -> None:
    """Writes a shard, all of it or nothing."""
    tensors = dict(_named(groups))
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
    metadata, tensors = read_tensors(path, "shard")
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"shard '{path}': format: expected '{FORMAT}'; got {metadata.get('format')!r}"
        )
    if not is_intact(metadata, tensors):
        raise ValueError(
            f"shard '{path}': sha256: its contents do not have the one that it records"
        )
    groups = []
    for number, architecture in enumerate(json.loads(metadata["architectures"])):
        params, columns = (
            _part(tensors, f"{number}.{part}.") for part in ("params", "columns")
        )
        groups.append(Networks(architecture, params, columns))
    return groups


@dataclass(frozen=True)
class Folder:
    """A folder of shards that were made with the same settings.

    settings: what decides what the networks are, JSON.
    """

    path: Path
    settings: Mapping[str, Any]

    def begin(self) -> None:
        """Makes the folder and its manifest. Raises ValueError if it has shards of
        other settings, or of none that are known."""
        make_folder(self.path)
        file = self.path / MANIFEST
        if not shard_paths(self.path):
            write_json(
                file, {"format": FORMAT, "settings": dict(self.settings), "shards": []}
            )
            return
        stored = read_manifest(self.path)["settings"]
        check_settings(f"folder '{self.path}'", stored, self.settings)

    def shard(self, split: str, number: int) -> Path:
        return self.path / f"{split}-{number:05d}.safetensors"

    def finish(self, quality: Sequence[str]) -> list[dict[str, Any]]:
        """Writes the manifest's list of shards: networks of each,
        and means of columns of quality."""
        rows = []
        for path in shard_paths(self.path):
            groups = read_shard(path)
            found: dict[str, Any] = {
                "file": path.name,
                "networks": sum(map(len, groups)),
            }
            for key in quality:
                found[key] = fmean(
                    torch.cat([group.columns[key] for group in groups]).tolist()
                )
            rows.append(found)
        write_json(
            self.path / MANIFEST,
            {"format": FORMAT, "settings": dict(self.settings), "shards": rows},
        )
        return rows


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ValueError if there is none that this version knows."""
    path = folder / MANIFEST
    found = read_json(path, "manifest")
    known = found.get("format") if isinstance(found, dict) else None
    if known != FORMAT:
        raise ValueError(
            f"manifest '{path}': format: expected '{FORMAT}'; got {known!r}"
        )
    for key, kind in (("settings", dict), ("shards", list)):
        if not isinstance(found.get(key), kind):
            raise ValueError(
                f"manifest '{path}': {key}: expected a {kind.__name__}; got {found.get(key)!r}"
            )
    return found


def read_settings(folder: Path, program: str) -> dict[str, Any]:
    """What the networks of a folder were made with.

    Raises ValueError if another program made them.
    """
    settings = read_manifest(folder)["settings"]
    known = settings.get("program")
    if known != program:
        raise ValueError(
            f"folder '{folder}': expected networks of {program}; got those of {known}"
        )
    return settings


def shard_paths(folder: Path, split: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{split}-*.safetensors"))


def read_split(
    folder: Path, split: str, skip_damaged: bool = False
) -> Iterator[Networks]:
    """All groups of a split, shard by shard; says so where the folder is not finished.

    skip_damaged: leave out shards that cannot be read, and say so, instead of raising
    ValueError.

    Raises ValueError if there is no shard of this split, if none can be read, and, with
    what to do, for one that cannot be read or that the manifest lists and that is not
    there.
    """
    listed = [folder / row["file"] for row in read_manifest(folder)["shards"]]
    own = {path for path in listed if path.match(f"{split}-*")}
    paths = sorted(own.union(shard_paths(folder, split)))
    if not paths:
        raise ValueError(
            f"folder '{folder}': expected shards of split '{split}'; got none"
        )
    if len(paths) > len(own):
        tqdm.write(
            f"folder '{folder}': not finished: of split '{split}' there are {len(paths)} shards, "
            f"{len(own)} of them in the manifest"
        )
    has_read = False
    for path in paths:
        try:
            groups = read_shard(path)
        except ValueError as error:
            if not skip_damaged:
                raise ValueError(f"{error}. {WAYS_OUT}") from None
            tqdm.write(f"left out: {error}")
            continue
        has_read = True
        yield from groups
    if not has_read:
        raise ValueError(
            f"folder '{folder}': expected shards of split '{split}' that can be read; got none"
        )


def check_parameters(
    what: str, expected: Mapping[str, Sequence[int]], params: Mapping[str, Tensor]
) -> None:
    """Compares parameters of several networks, (n, *shape), with the shapes that they
    should have.

    what: they are of, for messages. Raises ValueError, which names the first that is
    missing, too much, of another shape or not finite.
    """
    for name in sorted({*expected, *params}):
        wanted = tuple(expected[name]) if name in expected else "no such parameter"
        got = tuple(params[name].shape[1:]) if name in params else "none"
        if wanted != got:
            raise ValueError(f"{what}: {name}: expected shape {wanted}; got {got}")
        if not params[name].isfinite().all():
            raise ValueError(f"{what}: {name}: expected finite numbers; got others")


def check_column(
    folder: str, columns: Mapping[str, Tensor], key: str, least: float, most: float
) -> None:
    """Raises ValueError, which names folder and column, if it is not there or out of
    bounds."""
    if key not in columns:
        raise ValueError(
            f"folder '{folder}': expected networks with a column '{key}'; got none"
        )
    values = columns[key]
    odd = values[~((values >= least) & (values <= most))]
    if len(odd):
        raise ValueError(
            f"folder '{folder}': {key}: expected {least:g} to {most:g}; got {odd[0].item():g}"
        )


def merged(groups: Sequence[Networks]) -> Networks:
    """Networks of one architecture, together. Raises ValueError for several
    architectures."""
    first = groups[0]
    for group in groups:
        if group.architecture != first.architecture:
            raise ValueError(
                f"networks: expected architecture {first.architecture}; got {group.architecture}"
            )
    params = {
        key: torch.cat([group.params[key] for group in groups]) for key in first.params
    }
    columns = {
        key: torch.cat([group.columns[key] for group in groups])
        for key in first.columns
    }
    return Networks(first.architecture, params, columns)


def _named(groups: Sequence[Networks]) -> Iterator[tuple[str, Tensor]]:
    for number, group in enumerate(groups):
        for part, values in (("params", group.params), ("columns", group.columns)):
            for key, value in values.items():
                yield (f"{number}.{part}.{key}", value.detach().cpu().contiguous())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
