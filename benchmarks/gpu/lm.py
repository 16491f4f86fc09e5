"""Part (c): a language model on the Python source files of the machine.

A GPT with 34 M parameters (8 layers, width 512) on 64 x 512 tokens per step, with
bfloat16 autocast over float32 parameters, not compiled. All runs of one length have the
same initial weights and batches. The default is not tuned: its only argument is
`total_steps`. AdamW (betas .9 and .95, weight decay .1) and Muon (match_rms_adamw,
weight decay .1, with AdamW for embeddings, output layer and vectors) have 8 % linear
warm-up and cosine decay to 0.

validation: loss on held-out files in nats per token. train: mean loss of the last tenth
of the steps. seconds: of training, without evaluation and compilation.
"""

import time
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.gpu.corpus import Corpus, load_corpus
from benchmarks.gpu.optimizers import Optimizers, adamw, muon
from benchmarks.gpu.session import Records, Session
from benchmarks.records import Record
from benchmarks.shapes import Gpt, loss_of
from ngopt import NGOptimizer
from ngopt.schedule import cosine_schedule

WARM_UP = 0.08  # share of the steps
EVALUATIONS = 10  # per run


class Run(NamedTuple):
    """lr: learning rate of a baseline; None for the default."""

    optimizer: str
    lr: float | None
    steps: int


# In this order: the best lr of each, shorter runs, other lrs, longer runs.
RUNS = (
    Run("default", None, 1000),
    Run("AdamW", 0.001, 1000),
    Run("Muon + AdamW", 0.004, 1000),
    Run("default", None, 300),
    Run("AdamW", 0.001, 300),
    Run("Muon + AdamW", 0.004, 300),
    Run("AdamW", 0.002, 1000),
    Run("Muon + AdamW", 0.002, 1000),
    Run("AdamW", 0.0005, 1000),
    Run("Muon + AdamW", 0.008, 1000),
    Run("AdamW", 0.004, 1000),
    Run("Muon + AdamW", 0.001, 1000),
    Run("default", None, 3000),
    Run("Muon + AdamW", 0.004, 3000),
    Run("AdamW", 0.001, 3000),
)
TINY_RUNS = [run._replace(steps=20) for run in RUNS[:3]]


class Size(NamedTuple):
    """Sizes of the experiment.

    width, heads, depth: of the GPT. length: tokens per sequence. batch: sequences per
    step. tokens: for training. windows: sequences for validation.
    """

    width: int
    heads: int
    depth: int
    length: int
    batch: int
    vocabulary: int
    tokens: int
    windows: int


FULL = Size(512, 8, 8, 512, 64, 8192, 31_000_000, 512)
TINY = Size(16, 2, 1, 16, 4, 300, 20_000, 8)
# Sessions of fewer seconds use fewer tokens.
LONG = 100.0
FEW_TOKENS = 6_000_000


class Data:
    """A corpus on the device, and its batches."""

    def __init__(self, session: Session, size: Size, corpus: Corpus):
        self.size, self.vocabulary = size, corpus.vocabulary
        self.device = torch.device(session.device)
        self._train = self._on_device(corpus.train)
        self._held_out = self._on_device(corpus.validation)
        last = len(self._held_out) - size.length - 1
        starts = torch.linspace(0, last, size.windows).long()
        self._held_out_starts = starts.to(self.device)
        self._offsets = torch.arange(size.length + 1, device=self.device)

    def _on_device(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int32)).to(self.device)

    def starts(self, steps: int) -> Tensor:
        """Starts of the windows of each batch: (steps, batch)."""
        generator = torch.Generator().manual_seed(0)
        high, shape = len(self._train) - self.size.length, (steps, self.size.batch)
        return torch.randint(high, shape, generator=generator).to(self.device)

    def batch(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and the token after each, two tensors (batch, length)."""
        return self._windows(self._train, starts)

    def validation_batches(self) -> list[tuple[Tensor, Tensor]]:
        batches = self._held_out_starts.split(self.size.batch)
        return [self._windows(self._held_out, starts) for starts in batches]

    def _windows(self, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = tokens[starts[:, None] + self._offsets].long()
        return windows[:, :-1], windows[:, 1:]


class Training:
    """One run."""

    def __init__(self, session: Session, data: Data, run: Run):
        self.session, self.data, self.run = session, data, run
        size = data.size
        torch.manual_seed(0)
        with data.device:
            self.model: nn.Module = Gpt(
                data.vocabulary, size.length, size.width, size.heads, size.depth
            )
        self.optimizers: Optimizers = []
        self.schedules: list[LRScheduler] = []
        if run.lr is None:
            self.optimizers.append(
                NGOptimizer(self.model.parameters(), total_steps=run.steps)
            )
        else:
            make = adamw if run.optimizer == "AdamW" else muon
            self.optimizers += make(self.model, run.lr)
            for optimizer in self.optimizers:
                self.schedules.append(cosine_schedule(optimizer, run.steps, WARM_UP))
        self.starts = data.starts(run.steps)
        self.losses: list[Tensor] = []
        self.curve: dict[str, list[float]] = {"steps": [], "seconds": [], "loss": []}
        self.seconds = 0.0

    def finish(self) -> Record:
        """Makes all steps. Raises Skipped if the remaining ones do not fit."""
        every = max(self.run.steps // EVALUATIONS, 1)
        for first in range(0, self.run.steps, every):
            last = min(first + every, self.run.steps)
            taken = self.train(first, last)
            self.evaluate(last)
            if last < self.run.steps:
                seconds_per_step = taken / (last - first)
                self.session.check_left((self.run.steps - last) * seconds_per_step)
        losses = torch.stack(self.losses).tolist()
        return {
            "validation": self.curve["loss"][-1],
            "train": fmean(losses[-every:]),
            "ms": 1e3 * self.seconds / self.run.steps,
            "seconds": self.seconds,
            "curve": self.curve,
            "losses": losses[:: max(every // 10, 1)],
        }

    def train(self, first: int, last: int) -> float:
        """Makes the steps from `first` to `last`; returns their seconds."""
        self.session.synchronize()
        start = time.perf_counter()
        for number in range(first, last):
            loss = loss_of(self.model, *self.data.batch(self.starts[number]))
            loss.backward()
            self.losses.append(loss.detach())
            for optimizer in self.optimizers:
                optimizer.step()
            for schedule in self.schedules:
                schedule.step()
            self.model.zero_grad()
        self.session.synchronize()
        taken = time.perf_counter() - start
        self.seconds += taken
        return taken

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Adds a point to the curve."""
        batches = self.data.validation_batches()
        losses = [loss_of(self.model, *batch) for batch in batches]
        self.curve["steps"].append(step)
        self.curve["seconds"].append(self.seconds)
        self.curve["loss"].append(torch.stack(losses).mean().item())


def run(session: Session) -> None:
    records = Records(session, "lm")
    size = TINY if session.tiny else FULL
    if not session.tiny and session.left() < LONG:
        size = size._replace(tokens=FEW_TOKENS)
    corpora: list[Data] = []
    records.attempt({"what": "tokens"}, partial(prepare, session, size, corpora))
    if not corpora:
        return
    (data,) = corpora
    records.attempt({"what": "warm-up"}, partial(warm_up, session, data))
    step_seconds: dict[str, float] = {}  # by optimizer
    for planned in TINY_RUNS if session.tiny else RUNS:

        def case(run: Run = planned) -> Record:
            session.check_left(step_seconds.get(run.optimizer, 0) * run.steps)
            return Training(session, data, run).finish()

        record = records.attempt({"what": "run", **planned._asdict()}, case)
        if "ms" in record:
            step_seconds[planned.optimizer] = 1e-3 * record["ms"]


def warm_up(session: Session, data: Data) -> Record:
    """Compiles the default's functions, so that runs do not include that time."""
    Training(session, data, TINY_RUNS[0]).train(0, TINY_RUNS[0].steps)
    return {}


def prepare(session: Session, size: Size, corpora: list[Data]) -> Record:
    """Adds the data to `corpora`; returns their record."""
    corpus = load_corpus(session, size.tokens, size.vocabulary)
    corpora.append(Data(session, size, corpus))
    return {
        "tokenizer": corpus.tokenizer,
        "vocabulary": corpus.vocabulary,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
    }
