"""Meta-trains an optimizer: `python -m meta_train.train --metanet ff --folder runs/ff`.

Writes into its folder: `config.json`, `checkpoint.pt` (from which the same command resumes, bit for
bit), `log.jsonl` (one line a validation), TensorBoard events, and `best.safetensors`, the weights
with the lowest validation loss.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from meta_train import cli
from meta_train.estimators import Estimate, trained_metanet
from meta_train.problems import Metrics, mean_metrics
from meta_train.random import derive_seed, seeded
from meta_train.unroll import Task, whole_run
from meta_train.workers import Job, Result, UnrollConfig, Worker, WorkerPool
from ngopt.learned import LearnedOptimizer
from ngopt.models import METANETS, FeedForward, GraphMetanet
from ngopt.pretrained import load_pretrained, save_pretrained


@dataclass(frozen=True)
class Config:
    """Meta-training settings; every random number follows from `seed`."""

    folder: str
    """Where checkpoints, logs and weights go."""
    metanet: str = "ff"
    """Name of the metanet to train."""
    init_from: str | None = None
    """Weights (a bundled name or a file) to start from; those of an FF become another metanet's head."""
    problems: tuple[str, ...] = ("fm-16",)
    """Problems to sample from; validation is on the held-out data of the first."""
    estimator: str = "tbptt"
    """tbptt or pes."""
    outer_steps: int = 1000
    optimizees: int = 2
    """Inner trainings at the same time, of different ages."""
    horizon: int = 1000
    """Inner steps after which an optimizee is begun anew."""
    truncation: int = 100
    """Inner steps per outer step."""
    tail: float = 1.0
    """Share of a truncation, at its end, whose losses make up the meta-loss."""
    lr: float = 1e-3
    """Peak outer learning rate (AdamW), decayed along half a cosine to a hundredth."""
    warmup: int = 20
    """Outer steps of linear warm-up."""
    weight_decay: float = 1e-4
    """Decay of the outer AdamW."""
    inner_weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of one optimizee's meta-gradient."""
    sigma: float = 0.01
    """Standard deviation of PES's perturbations."""
    loss_limit: float = 2.0
    """An optimizee whose loss exceeds this many times its first loss is begun anew."""
    output_scale: float | None = None
    """Overrides the metanet's output scale."""
    magnitude_scale: float | None = None
    validate_every: int = 50
    validation_seeds: int = 1
    autocast: bool = False
    """Compute optimizees' losses in bfloat16."""
    processes: int = 1
    """Processes, of one thread each, that unroll optimizees; their number changes no result."""
    seed: int = 0


@dataclass
class Slot:
    """One of the optimizees that train at the same time; `life` counts how often it was begun anew."""

    number: int
    life: int = 0
    age: int = 0
    state: Any = None
    first_loss: float | None = None


class MetaTrainer:
    """The outer loop: unrolls optimizees, averages their meta-gradients, steps AdamW, validates, saves."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.folder)
        self.learned = make_learned(config)
        self.metanet = trained_metanet(self.learned)
        settings = {field.name: getattr(config, field.name) for field in fields(UnrollConfig)}
        self.worker = Worker(UnrollConfig(**settings), self.learned)
        self.pool: WorkerPool | None = None
        if config.processes > 1:
            self.pool = WorkerPool(self.worker.config, self.learned, config.processes)
        self.optimizer = torch.optim.AdamW(self.metanet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.slots = [Slot(i) for i in range(config.optimizees)]
        self.outer_step, self.best = 0, float("inf")
        self.log: list[dict[str, Any]] = []  # one record a validation

    def run(self) -> None:
        """Trains to the end, resuming where the folder's checkpoint stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.load_checkpoint()
        (self.folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2))
        writer = SummaryWriter(str(self.folder), purge_step=self.outer_step)
        start, steps = time.perf_counter(), self.config.outer_steps
        with tqdm(total=steps, initial=self.outer_step, unit="outer step", smoothing=0.05) as bar:
            while self.outer_step < steps:
                losses, norm = self.step()
                bar.set_postfix(meta_loss=f"{np.mean(losses):.3f}", norm=f"{norm:.2g}")
                bar.update()
                writer.add_scalar("meta_loss", np.mean(losses), self.outer_step)
                writer.add_scalar("meta_gradient_norm", norm, self.outer_step)
                if self.outer_step % self.config.validate_every == 0 or self.outer_step == steps:
                    metrics = self.validate()
                    writer.add_scalar("validation/loss", metrics.loss, self.outer_step)
                    accuracy = ""
                    if metrics.accuracy is not None:
                        writer.add_scalar("validation/accuracy", metrics.accuracy, self.outer_step)
                        accuracy = f"accuracy {100 * metrics.accuracy:.2f} %, "
                    tqdm.write(
                        f"outer step {self.outer_step}: validation loss {metrics.loss:.4f}, "
                        f"{accuracy}{time.perf_counter() - start:.0f} s"
                    )
                    self.save_checkpoint()
        writer.close()
        if self.pool is not None:
            self.pool.close()

    def step(self) -> tuple[list[float], float]:
        """One outer step: meta-losses of all optimizees, and the mean norm of their meta-gradients."""
        config = self.config
        jobs = [Job(self.seed_of(slot), slot.state, slot.first_loss) for slot in self.slots]
        results = (self.pool or self.worker).run(jobs)
        estimates = [result.estimate for result in results]
        gradients = [clip(e.meta_gradient, config.clip_norm) for e in estimates if usable(e)]
        self.outer_step += 1
        if gradients:
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(self.outer_step, config)
            assign_gradient(self.metanet, torch.stack(gradients).mean(0))
            self.optimizer.step()
        for slot, result in zip(self.slots, results, strict=True):
            self.advance(slot, result)
        norm = torch.stack([e.meta_gradient.norm() for e in estimates]).mean().item()
        return [e.meta_loss for e in estimates], norm

    def advance(self, slot: Slot, result: Result) -> None:
        """Keeps where an optimizee stands; begins it anew when its time is over or it diverged."""
        config, estimate = self.config, result.estimate
        slot.age, slot.state, slot.first_loss = slot.age + config.truncation, result.state, result.first_loss
        diverged = not usable(estimate) or estimate.meta_loss > 0.5 * (1 + config.loss_limit) * slot.first_loss
        # The first lives have different lengths, so that ages differ from then on.
        horizon = config.horizon * (slot.number + 1) // config.optimizees if slot.life == 0 else config.horizon
        if diverged or slot.age >= horizon:
            slot.life, slot.age, slot.state, slot.first_loss = slot.life + 1, 0, None, None

    def seed_of(self, slot: Slot) -> int:
        return derive_seed(self.config.seed, 10, slot.number, slot.life)

    def validate(self) -> Metrics:
        """Whole inner trainings on the first problem; keeps the weights when their mean loss is the lowest yet."""
        config, results = self.config, []
        for k in range(config.validation_seeds):
            task = Task(self.worker.problems[0], derive_seed(config.seed, 11, k), config.autocast)
            results.append(whole_run(task, self.learned, config.horizon, config.inner_weight_decay))
        metrics = mean_metrics(results)
        record = {"outer_step": self.outer_step, **metrics._asdict()}
        self.log.append(record)
        (self.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))
        if metrics.loss < self.best:
            self.best = metrics.loss
            best = replace(self.learned, recipe=self.recipe(), table={"validation": record})
            save_pretrained(best, self.folder / "best.safetensors")
        return metrics

    def recipe(self) -> dict[str, Any]:
        """The steps that made the weights, the last one ours."""
        config = {k: v for k, v in asdict(self.config).items() if k != "folder"}
        stage = {"program": "meta_train.train", "outer_step": self.outer_step, **config}
        return {"stages": [*self.learned.recipe["stages"], stage]}

    def save_checkpoint(self) -> None:
        state = {
            "metanet": self.metanet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slots": [vars(slot) for slot in self.slots],
            "outer_step": self.outer_step,
            "best": self.best,
            "log": self.log,
            "config": asdict(self.config),
        }
        part = self.folder / "checkpoint.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def load_checkpoint(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=False)
        check_same_config(path, state["config"], asdict(self.config))
        self.metanet.load_state_dict(state["metanet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slots = [Slot(**slot) for slot in state["slots"]]
        self.outer_step, self.best, self.log = state["outer_step"], state["best"], state["log"]


def make_learned(config: Config) -> LearnedOptimizer:
    """What to train: a metanet from weights, beside their base rule, or from a seeded random start."""
    overrides = {}
    for key in ("output_scale", "magnitude_scale"):
        value = getattr(config, key)
        if value is not None:
            overrides[key] = value
    if config.metanet not in METANETS:
        raise ValueError(f"metanet '{config.metanet}': expected one of {', '.join(METANETS)}")
    cls = METANETS[config.metanet]
    with seeded(config.seed, 12):
        if config.init_from is None:
            return LearnedOptimizer(metanet=cls(cls.Config(**overrides)))
        learned = load_pretrained(config.init_from)
        start = learned.metanet
        if isinstance(start, FeedForward) and issubclass(cls, GraphMetanet):
            start = cls.from_feedforward(start)
    if start is None or type(start) is not cls:
        got = "none" if start is None else start.name
        raise ValueError(f"weights '{config.init_from}': expected metanet '{config.metanet}'; got '{got}'")
    return replace(learned, metanet=start.reconfigured(**overrides))


def learning_rate_factor(step: int, config: Config) -> float:
    """Linear warm-up, then half a cosine from 1 to 0.01."""
    if step <= config.warmup:
        return step / config.warmup
    progress = (step - config.warmup) / max(config.outer_steps - config.warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + cos(pi * progress))


def usable(estimate: Estimate) -> bool:
    return bool(np.isfinite(estimate.meta_loss)) and bool(estimate.meta_gradient.isfinite().all())


def clip(gradient: torch.Tensor, norm: float) -> torch.Tensor:
    """Scales a vector down to a norm if it is longer."""
    return gradient * min(1.0, norm / max(gradient.norm().item(), 1e-12))


def assign_gradient(module: nn.Module, gradient: torch.Tensor) -> None:
    pieces = gradient.split([p.numel() for p in module.parameters()])
    for parameter, piece in zip(module.parameters(), pieces, strict=True):
        parameter.grad = piece.view_as(parameter).clone()


def check_same_config(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises ValueError when a checkpoint was made with other settings (more outer steps or processes are fine)."""
    odd = [
        k
        for k in given
        if k not in ("outer_steps", "folder", "processes") and list_of(saved.get(k)) != list_of(given[k])
    ]
    if odd:
        raise ValueError(
            f"checkpoint '{path}': made with other settings: "
            + ", ".join(f"{k} = {saved.get(k)!r}, got {given[k]!r}" for k in odd)
        )


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def run(config: Config) -> None:
    MetaTrainer(config).run()


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
