"""Training runs with TensorBoard curves, and the checkpoints from which they resume."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from harness.distributed import Ranks
from harness.errors import Interrupted, uninterrupted
from harness.files import make_folder, read_checkpoint
from harness.settings import check_settings
from ngopt.pretrained.tensor_files import atomic_write


@dataclass(frozen=True)
class Checkpoint:
    """The file from which a training run resumes.

    settings: all that the state depends on. may_change: keys of settings that may
    differ when it resumes. trusted: whether the file may hold any Python object.
    """

    folder: Path
    settings: Mapping[str, Any]
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


class ResumableTrainer(ABC):
    """Trains in the folder of a checkpoint, and resumes from it."""

    step_name = "step"

    def __init__(self, checkpoint: Checkpoint, ranks: Ranks):
        self.checkpoint, self.ranks = checkpoint, ranks
        self.saved_step: int | None = None

    @property
    @abstractmethod
    def steps_done(self) -> int: ...

    @abstractmethod
    def train(self, writer: SummaryWriter | None) -> None:
        """Trains to the end. writer: None except on the first rank."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The state to store; called on all ranks."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None: ...

    def run(self) -> None:
        """Trains to the end, from the checkpoint if there is one.

        Raises Interrupted for Ctrl-C, after saving a checkpoint if this is the only
        rank.
        """
        folder = self.checkpoint.folder
        make_folder(folder)
        self.load_checkpoint()
        writer = None
        if self.ranks.is_first:
            # drops curves of steps after the checkpoint
            writer = SummaryWriter(str(folder), purge_step=self.steps_done + 1)
        try:
            self.train(writer)
        except KeyboardInterrupt:
            if self.ranks.count == 1:
                with uninterrupted():
                    self.save_checkpoint()
            message = checkpoint_message(folder, self.saved_step, self.step_name)
            raise Interrupted(message) from None
        finally:
            if writer:
                writer.close()

    def save_checkpoint(self) -> None:
        state = self.state()
        if self.ranks.is_first:
            self.checkpoint.write(state)
        self.saved_step = self.steps_done

    def load_checkpoint(self) -> None:
        state = self.checkpoint.read()
        if state is not None:
            self.load_state(state)
            self.saved_step = self.steps_done
