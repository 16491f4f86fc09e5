"""Weights files: safetensors with the metanet's name, config, recipe and measured table in the metadata.

Reading one touches no network and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ngopt.models import METANETS, Metanet

FORMAT = "ngopt-1"
FOLDER = Path(__file__).parent
# Until a better one exists, the default is the best of the paper's metanets.
DEFAULT = "ng-gnn"


def list_pretrained() -> list[str]:
    """Names of the weights bundled in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(weights: str | os.PathLike = "default") -> Metanet:
    """The metanet of a bundled weights file (by name) or of a file (by path), in float32 on the CPU.

    The metanet has `recipe` and `table`, what the file says of its meta-training and results.

    Raises ValueError if there is no such name or file, if the file is damaged, or if its format,
    metanet or config is not one that this version knows.
    """
    path = _resolve(weights)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights file '{path}': expected a complete safetensors file; got: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"weights file '{path}': expected format '{FORMAT}'; got {metadata.get('format')!r}")
    if metadata.get("sha256") != _hash(tensors, metadata.get("config", "")):
        raise ValueError(f"weights file '{path}': its contents do not have the SHA-256 that it records")
    metanet = _build(path, metadata)
    try:
        metanet.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"weights file '{path}': tensors do not fit its config: {error}") from None
    metanet.recipe, metanet.table = json.loads(metadata["recipe"]), json.loads(metadata["table"])
    return metanet.requires_grad_(False)


def save_pretrained(metanet: Metanet, path: str | os.PathLike, recipe: dict[str, Any], table: dict[str, Any]) -> None:
    """Writes a weights file, all of it or nothing.

    recipe: how the weights were made. table: what was measured with them. Both must be JSON.
    """
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in metanet.state_dict().items()}
    config = json.dumps(asdict(metanet.config))
    metadata = {
        "format": FORMAT,
        "metanet": metanet.name,
        "config": config,
        "recipe": json.dumps(recipe),
        "table": json.dumps(table),
        "sha256": _hash(tensors, config),
    }
    path = Path(path)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, part, metadata)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def weights_hash(metanet: Metanet) -> str:
    """Identifies a metanet: SHA-256 over its tensors and config, whatever device or dtype they are in."""
    return _hash(metanet.state_dict(), json.dumps(asdict(metanet.config)))


def _resolve(weights: str | os.PathLike) -> Path:
    name = DEFAULT if weights == "default" else weights
    if name in list_pretrained():
        return FOLDER / f"{name}.safetensors"
    path = Path(name)
    if path.is_file():
        return path
    raise ValueError(
        f"weights '{os.fspath(weights)}': expected one of {', '.join(['default', *list_pretrained()])}, or an "
        "existing weights file; got neither"
    )


def _build(path: Path, metadata: dict[str, str]) -> Metanet:
    name = metadata.get("metanet")
    if name not in METANETS:
        raise ValueError(f"weights file '{path}': expected a metanet out of {', '.join(METANETS)}; got {name!r}")
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata["config"]).items()}
    known = {field.name for field in fields(METANETS[name].Config)}
    if config.keys() != known:
        odd = sorted(config.keys() ^ known)
        raise ValueError(
            f"weights file '{path}': expected the config of this version's metanet '{name}'; got one that differs "
            f"in {', '.join(odd)}"
        )
    return METANETS[name](METANETS[name].Config(**config))


def _hash(tensors: dict[str, Tensor], config: str) -> str:
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        value = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
