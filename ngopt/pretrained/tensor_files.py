"""Safetensors files that are written atomically and record their SHA-256."""

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
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` at the end.

    If something is raised, `path` is left as it was.
    """
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(part)
        os.chmod(part, 0o644)
        # The contents are on disk before the name: a crash leaves no partial file.
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def write_tensors(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Writes a safetensors file atomically, with the SHA-256 of its contents."""
    with atomic_write(path) as part:
        hashed = {**metadata, "sha256": digest(metadata, tensors)}
        save_file(dict(tensors), part, hashed)


def read_tensors(
    path: Path, kind: str, expected_format: str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata, without the SHA-256, and tensors of a safetensors file.

    kind: of the file, for messages. Raises ValueError if the file is incomplete or
    damaged, or has another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{kind} '{path}': expected a complete safetensors file; got: {error}"
        ) from None
    if metadata.get("format") != expected_format:
        got = metadata.get("format")
        raise ValueError(
            f"{kind} '{path}': expected format '{expected_format}'; got {got!r}"
        )
    if metadata.pop("sha256", None) != digest(metadata, tensors):
        raise ValueError(
            f"{kind} '{path}': expected contents with the recorded SHA-256; got "
            "others. Download or write the file again"
        )
    return metadata, tensors


def digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of texts and of tensors with their names, shapes and dtypes.

    float32, the usual dtype, is left out.
    """
    hashed = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        dtype = "" if value.dtype == torch.float32 else str(value.dtype)
        hashed.update(f"{key}{dtype}{tuple(value.shape)}".encode())
        hashed.update(value.numpy().tobytes())
    return hashed.hexdigest()
