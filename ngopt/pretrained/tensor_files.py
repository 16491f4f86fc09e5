"""Files of tensors that say what is in them: whole or not at all,
and noticed where they are damaged."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Another file to write to, which takes the path's place at the end,
    unless something was raised."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(part)
        os.chmod(part, 0o644)
        # on disk before it gets its name, which no half of a file is to have after a
        # crash
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def write_tensors(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Writes a safetensors file that records the SHA-256 of its contents, all of it or
    nothing."""
    described = {**metadata, "sha256": digest(metadata, tensors)}
    with replaced(path) as part:
        save_file(dict(tensors), part, described)


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, not compared with their SHA-256 yet.

    what: the file is, for messages. Raises ValueError if it is not complete.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{what} '{path}': expected a complete safetensors file; got: {error}"
        ) from None
    return metadata, tensors


def is_intact(metadata: dict[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether contents have the SHA-256 that they record, which is taken out of the
    metadata."""
    return metadata.pop("sha256", None) == digest(metadata, tensors)


def digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of texts and tensors, with the names, shapes and dtypes (but float32) of
    these."""
    found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        dtype = "" if value.dtype == torch.float32 else str(value.dtype)
        found.update(f"{key}{dtype}{tuple(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()
