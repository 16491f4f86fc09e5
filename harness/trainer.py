"""Base class of training runs with checkpoints and TensorBoard curves."""

from abc import ABC, abstractmethod
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from harness.checkpoint import Checkpoint, checkpoint_message
from harness.distributed import Ranks
from harness.files import make_folder
from harness.interrupts import Interrupted, uninterrupted


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
            raise self.interrupted() from None
        finally:
            if writer:
                writer.close()

    def interrupted(self) -> Interrupted:
        """The error for Ctrl-C, with the step of the checkpoint."""
        folder = self.checkpoint.folder
        return Interrupted(checkpoint_message(folder, self.saved_step, self.step_name))

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
