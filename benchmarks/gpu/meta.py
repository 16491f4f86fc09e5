"""Part (d): some outer steps of `meta_train.training.train` on the device.

All metanets with truncated backpropagation, then all estimators with the feed-forward
metanet. Optimizees are stacked small CNNs that classify random images, so no data set
is needed.
"""

import importlib
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.session import Records, Session
from benchmarks.records import Record
from benchmarks.shapes import plain_cnn
from harness.random import derive_seed, seeded
from ngopt.metanets import METANETS

PROBLEM = f"{__name__}:RandomImages"
SIDE, CLASSES, BATCH = 12, 10, 32
OUTER_STEPS = 3
ESTIMATORS = "pes", "es", "tbptt-2", "imitation"  # all others than tbptt


class RandomImages:
    """Images of ten classes: random patterns with noise."""

    name, steps = "random images", 20

    def init(self, seed: int) -> nn.Module:
        with seeded(seed):
            return plain_cnn()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (BATCH, 1, SIDE, SIDE) and classes (BATCH,)."""
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=generator)
        generator.manual_seed(derive_seed(seed, step))
        classes = torch.randint(CLASSES, (BATCH,), generator=generator)
        noise = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
        return patterns[classes] + noise, classes

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, limit: int | None = None) -> Any:
        from meta_train.problems import Metrics

        device = next(model.parameters()).device
        images, classes = self.batch(0, 0)
        logits = model(images.to(device))
        classes = classes.to(device)
        accuracy = (logits.argmax(1) == classes).double().mean().item()
        return Metrics(F.cross_entropy(logits, classes).item(), accuracy)


def meta_trained(session: Session, metanet: str, estimator: str) -> Record:
    """Trains for some outer steps, validates and saves."""
    train = training_program()
    with TemporaryDirectory() as folder:
        config = train.Config(
            folder=folder,
            metanet=metanet,
            problems=(PROBLEM,),
            estimator=estimator,
            outer_steps=OUTER_STEPS,
            optimizees=2,
            horizon=10 if session.tiny else 40,
            truncation=2 if session.tiny else 10,
            validate_every=OUTER_STEPS,
            device=session.device,
            stacked=True,
        )
        trainer = train.MetaTrainer(config)
        start = time.perf_counter()
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            trainer.run()
        session.synchronize()
        seconds = time.perf_counter() - start
        saved = (Path(folder) / "best.safetensors").exists()
    loss = trainer.log[-1]["loss"]
    is_finite = all(bool(p.isfinite().all()) for p in trainer.metanet.parameters())
    status = "ok" if saved and is_finite else "failed"
    return {"status": status, "validation": loss, "seconds": seconds}


def training_program() -> ModuleType:
    """`meta_train.training.train`, also without tyro, which its command line needs."""
    try:
        importlib.import_module("tyro")
    except ImportError:
        sys.modules["tyro"] = ModuleType("tyro")
    from meta_train.training import train

    return train


def run(session: Session) -> None:
    records = Records(session, "meta")
    by_metanet = product(METANETS, ["tbptt"])
    by_estimator = product(["ff"], ESTIMATORS)
    for metanet, estimator in chain(by_metanet, by_estimator):
        about = {"metanet": metanet, "estimator": estimator}
        records.attempt(about, partial(meta_trained, session, metanet, estimator))
