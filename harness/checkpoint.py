"""The checkpoint from which a training run resumes; other settings are errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.files import read_checkpoint
from ngopt.pretrained.tensor_files import atomic_write

Settings = Mapping[str, Any]


def check_settings(what: str, stored: Settings, requested: Settings) -> None:
    """Raises ValueError, which names `what`, if settings differ, compared as JSON."""
    stored, requested = json.loads(json.dumps([stored, requested]))
    differences = []
    for key in sorted({*stored, *requested}):
        old, new = stored.get(key), requested.get(key)
        if old != new:
            differences.append(f"{key} {old!r}, got {new!r}")
    if differences:
        raise ValueError(f"{what}: made with other settings: {', '.join(differences)}")


@dataclass(frozen=True)
class Checkpoint:
    """The file from which a training run resumes.

    settings: all that the state depends on. may_change: keys of settings that may
    differ when it resumes. trusted: whether the file may hold any Python object.
    """

    folder: Path
    settings: Settings
    may_change: tuple[str, ...] = ()
    trusted: bool = False
    changed: dict[str, Any] = field(default_factory=dict, init=False)
    """Stored settings of `may_change` that `settings` changes, once it is read."""

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def write(self, state: Mapping[str, Any]) -> None:
        with atomic_write(self.path) as part:
            torch.save({**state, "settings": dict(self.settings)}, part)

    def read(self) -> dict[str, Any] | None:
        """The stored state; None if there is no file. Raises ValueError if it is
        damaged or was made with other settings."""
        if not self.path.exists():
            return None
        state = read_checkpoint(self.path, self.trusted)
        stored = state.pop("settings")
        changed = {key: self.settings[key] for key in self.may_change}
        for key, value in changed.items():
            if key in stored and stored[key] != value:
                self.changed[key] = stored[key]
        check_settings(
            f"checkpoint '{self.path}'", {**stored, **changed}, self.settings
        )
        return state


def checkpoint_message(folder: Path, step: int | None, step_name: str = "step") -> str:
    """How far a folder's checkpoint is, and how to resume. step: None without one."""
    path = folder / "checkpoint.pt"
    if step is None:
        return f"the checkpoint '{path}' was not written yet"
    return (
        f"the checkpoint '{path}' stands at {step_name} {step}; the same command with "
        f"--folder {folder} goes on from there"
    )
