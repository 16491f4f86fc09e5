"""The file from which a meta-training resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.settings import differences
from ngopt.pretrained.tensor_files import atomic_write

# Settings that change no number.
NO_MATTER = ("folder", "processes")


def path_in(folder: str | Path) -> Path:
    return Path(folder, "checkpoint.pt")


def write(
    folder: str | Path, state: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Keeps the state of a meta-training, and the settings that led to it."""
    with atomic_write(path_in(folder)) as part:
        torch.save({**state, "config": config}, part)


def read(folder: str | Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that `write` kept; None where there is none.

    Raises ValueError when it was made with other settings (more outer steps or
    processes are fine).
    """
    path = path_in(folder)
    if not path.exists():
        return None
    state = torch.load(path, weights_only=False)
    may_change = {key: config[key] for key in ("outer_steps", *NO_MATTER)}
    odd = differences({**state.pop("config"), **may_change}, config)
    if odd:
        raise ValueError(f"checkpoint '{path}': made with other settings: {odd}")
    return state


def whereabouts(folder: str | Path) -> str:
    """How far a folder's checkpoint is, for people."""
    path = path_in(folder)
    if not path.exists():
        return f"the checkpoint '{path}' was not written yet"
    outer_step = torch.load(path, weights_only=False)["outer_step"]
    return f"the checkpoint '{path}' stands at outer step {outer_step}"
