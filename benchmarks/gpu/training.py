"""One training run on a GPU, with checkpoints.

bfloat16 autocast over float32 parameters, not compiled. Runs of equal length and seed
have the same initial weights and batches. The default is not tuned. AdamW (betas .9 and
.95, weight decay .1), Muon (match_rms_adamw, weight decay .1, with AdamW for
embeddings, output layer and vectors) and heavyball's SOAP have 8 % linear warm-up and
cosine decay to 0.
"""

import time
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.gpu.images import Images
from benchmarks.gpu.lm import Text
from benchmarks.gpu.optimizers import adamw, muon
from benchmarks.gpu.session import Cut, Session, check_installed
from benchmarks.records import Record
from benchmarks.shapes import loss_and_logits, loss_of
from harness.files import read_checkpoint
from ngopt import NGOptimizer
from ngopt.pretrained.tensor_files import atomic_write
from ngopt.race.optimizers import Built, soap
from ngopt.schedule import cosine_schedule

DEFAULT, ADAMW, MUON, SOAP = "default", "AdamW", "Muon + AdamW", "SOAP"
MAKE = {ADAMW: adamw, MUON: muon, SOAP: soap}
WARM_UP = 0.08  # share of the steps
EVALUATIONS = 10  # per run
TINY_STEPS = 20
KEPT_LOSSES = 100
Data = Text | Images


class Run(NamedTuple):
    """data: its name. lr: of a baseline, None for the best one of the narrowest
    network; multiplier of the default's steps."""

    data: str
    optimizer: str
    lr: float | None
    steps: int
    seed: int = 0

    def __str__(self) -> str:
        lr = "best of gpt-256" if self.lr is None else f"{self.lr:g}"
        text = f"{self.data}, {self.optimizer}, {lr}, {self.steps:,} steps"
        return text + f", seed {self.seed}" * bool(self.seed)


def build(model: nn.Module, run: Run) -> Built:
    """The optimizer, and the scheduler to step after it."""
    assert run.lr is not None
    if run.optimizer == DEFAULT:
        named = model.named_parameters()
        return NGOptimizer(named, scale=run.lr, total_steps=run.steps), None
    if run.optimizer == SOAP:
        check_installed("heavyball")
    optimizer = MAKE[run.optimizer](model, run.lr)
    return optimizer, cosine_schedule(optimizer, run.steps, WARM_UP)


class Training:
    """A run before its next step.

    weights: to start from; None for random ones.
    """

    def __init__(
        self,
        session: Session,
        data: Data,
        run: Run,
        weights: dict[str, Tensor] | None = None,
    ):
        if session.tiny:
            run = run._replace(steps=TINY_STEPS)
        self.session, self.data, self.run = session, data, run
        torch.manual_seed(run.seed)
        with data.device:
            self.model = data.model()
        if weights is not None:
            self.model.load_state_dict(weights)
        self.optimizer, self.scheduler = build(self.model, run)
        self.order = data.order(run.steps, run.seed)
        self.losses: list[Tensor] = []
        self.curve: dict[str, list[float]] = {
            "steps": [], "seconds": [], "loss": [], "accuracy": []
        }  # fmt: skip
        self.seconds = 0.0  # without evaluations
        self.parts = [self.model, self.optimizer]
        if self.scheduler is not None:
            self.parts.append(self.scheduler)

    def finish(self, checkpoint: Path) -> Record:
        """Makes all steps that are left, from the checkpoint if there is one.

        Raises Cut, with a checkpoint written, when the session's time is over.
        """
        if checkpoint.exists():
            self.load(checkpoint)
        every = max(self.run.steps // EVALUATIONS, 1)
        self.bar = tqdm(
            desc=str(self.run),
            initial=len(self.losses),
            total=self.run.steps,
            mininterval=5,
        )
        while (first := len(self.losses)) < self.run.steps:
            last = min(first - first % every + every, self.run.steps)
            self.train(last)
            if len(self.losses) < last:
                self.save(checkpoint)
                raise Cut(f"{len(self.losses):,} of {self.run.steps:,} steps")
            self.evaluate()
        checkpoint.unlink(missing_ok=True)
        losses = torch.stack(self.losses).tolist()
        # some intervals include compilation
        intervals = np.diff(self.curve["seconds"]) / np.diff(self.curve["steps"])
        return {
            "validation": self.curve["loss"][-1],
            "accuracy": self.curve["accuracy"][-1],
            "train": fmean(losses[-every:]),
            "ms": 1e3 * float(np.median(intervals)),
            "seconds": self.seconds,
            "curve": self.curve,
            "losses": losses[:: max(self.run.steps // KEPT_LOSSES, 1)],
        }

    def train(self, last: int) -> None:
        """Makes steps up to `last`, fewer if the session's time is over."""
        self.session.synchronize()
        start = time.perf_counter()
        self.model.train()
        for number in range(len(self.losses), last):
            if self.session.left() <= 0:
                break
            loss = loss_of(self.model, *self.data.batch(self.order[number]))
            loss.backward()
            self.losses.append(loss.detach())
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            self.model.zero_grad()
            self.bar.update()
        self.session.synchronize()
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def evaluate(self) -> None:
        """Adds a point to the curve."""
        self.model.eval()
        total = hits = torch.zeros((), device=self.data.device)
        count = 0
        for inputs, targets in self.data.validation_batches():
            loss, logits = loss_and_logits(self.model, inputs, targets)
            total = total + loss * len(logits)
            hits = hits + (logits.argmax(1) == targets.flatten()).sum()
            count += len(logits)
        self.curve["steps"].append(len(self.losses))
        self.curve["seconds"].append(self.seconds)
        self.curve["loss"].append(total.item() / count)
        self.curve["accuracy"].append(hits.item() / count)

    def save(self, path: Path) -> None:
        state: dict[str, Any] = {
            "parts": [part.state_dict() for part in self.parts],
            "losses": self.losses,
            "curve": self.curve,
            "seconds": self.seconds,
        }
        with atomic_write(path) as part:
            torch.save(state, part)

    def load(self, path: Path) -> None:
        state = read_checkpoint(path, trusted=True)
        for part, saved in zip(self.parts, state.pop("parts"), strict=True):
            part.load_state_dict(saved)
        self.losses, self.curve = state["losses"], state["curve"]
        self.seconds = state["seconds"]
