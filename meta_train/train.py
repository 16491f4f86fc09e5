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
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from meta_train.estimators import PES, TBPTT, Estimate, Estimator
from meta_train.problems import Metrics, load_problem
from meta_train.random import derive_seed, seeded
from meta_train.unroll import Task, whole_run
from ngopt.models import METANETS, FeedForward, reconfigure
from ngopt.pretrained import load_pretrained, metanet_name, save_pretrained


ESTIMATORS = ("tbptt", "pes")


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
    """One of `ESTIMATORS`."""
    outer_steps: int = 1000
    optimizees: int = 2
    """Inner trainings at the same time, of different ages."""
    horizon: int = 1000
    """Inner steps after which an optimizee is begun anew."""
    truncation: int = 100
    """Inner steps per outer step."""
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
    threads: int = 1
    seed: int = 0


class Slot:
    """One of the optimizees that train at the same time; `life` counts how often it was begun anew."""

    def __init__(self, number: int, life: int = 0, state: Any = None, age: int = 0, first_loss: float = 0.0):
        self.number, self.life, self.state, self.age, self.first_loss = number, life, state, age, first_loss


class MetaTrainer:
    """The outer loop: unrolls optimizees, averages their meta-gradients, steps AdamW, validates, saves."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.folder)
        self.problems = [load_problem(name) for name in config.problems]
        if config.estimator not in ESTIMATORS:
            raise ValueError(f"estimator '{config.estimator}': expected one of {', '.join(ESTIMATORS)}")
        self.metanet = make_metanet(config)
        self.optimizer = torch.optim.AdamW(
            self.metanet.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.slots = [Slot(i) for i in range(config.optimizees)]
        self.outer_step, self.best = 0, float("inf")
        self.tasks: dict[tuple[int, int], Task] = {}

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
                    writer.add_scalar("validation/accuracy", metrics.accuracy, self.outer_step)
                    tqdm.write(
                        f"outer step {self.outer_step}: validation loss {metrics.loss:.4f}, "
                        f"accuracy {100 * metrics.accuracy:.2f} %, {time.perf_counter() - start:.0f} s"
                    )
                    self.save_checkpoint()
        writer.close()

    def step(self) -> tuple[list[float], float]:
        """One outer step: meta-losses of all optimizees, and the norm of their averaged meta-gradient."""
        config = self.config
        estimates = [self.advance(slot) for slot in self.slots]
        gradients = [clip(e.meta_gradient, config.clip_norm) for e in estimates if usable(e)]
        self.outer_step += 1
        if gradients:
            mean = torch.stack(gradients).mean(0)
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(self.outer_step, config)
            assign_gradient(self.metanet, mean)
            self.optimizer.step()
            self.optimizer.zero_grad()
        norm = torch.stack([e.meta_gradient.norm() for e in estimates]).mean().item()
        return [e.meta_loss for e in estimates], norm

    def advance(self, slot: Slot) -> Estimate:
        """Unrolls one optimizee by a truncation; begins it anew when its time is over or it diverged."""
        config = self.config
        task = self.task(slot)
        if slot.state is None:
            slot.state = self.estimator(slot).start(task, self.metanet)
            slot.first_loss = self.first_loss(task)
        estimate, slot.state = self.estimator(slot).estimate(task, self.metanet, slot.state, config.truncation)
        slot.age += config.truncation
        diverged = not usable(estimate) or estimate.meta_loss > 0.5 * (1 + config.loss_limit) * slot.first_loss
        # The first lives have different lengths, so that ages differ from then on.
        horizon = config.horizon * (slot.number + 1) // config.optimizees if slot.life == 0 else config.horizon
        if diverged or slot.age >= horizon:
            self.tasks.pop((slot.number, slot.life))
            slot.life, slot.state, slot.age = slot.life + 1, None, 0
        return estimate

    def estimator(self, slot: Slot) -> Estimator:
        config = self.config
        limit = config.loss_limit * slot.first_loss if slot.first_loss else float("inf")
        if config.estimator == "tbptt":
            return TBPTT(config.inner_weight_decay, limit)
        return PES(config.sigma, config.inner_weight_decay, limit)

    def task(self, slot: Slot) -> Task:
        key = (slot.number, slot.life)
        if key not in self.tasks:
            seed = derive_seed(self.config.seed, 10, *key)
            self.tasks[key] = Task(self.problems[seed % len(self.problems)], seed, self.config.autocast)
        return self.tasks[key]

    def first_loss(self, task: Task) -> float:
        inner = task.start(self.metanet)
        with torch.no_grad():
            return task.loss(inner.params, inner.buffers, 0)[0].item()

    def validate(self) -> Metrics:
        """Whole inner trainings on the first problem; keeps the weights when their mean loss is the lowest yet."""
        config, results = self.config, []
        for k in range(config.validation_seeds):
            task = Task(self.problems[0], derive_seed(config.seed, 11, k), config.autocast)
            results.append(whole_run(task, self.metanet, config.horizon, config.inner_weight_decay))
        metrics = Metrics(*np.mean(results, axis=0).tolist())
        record = {"outer_step": self.outer_step, **metrics._asdict()}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if metrics.loss < self.best:
            self.best = metrics.loss
            save_pretrained(self.metanet, self.folder / "best.safetensors", self.recipe(), {"validation": record})
        return metrics

    def recipe(self) -> dict[str, Any]:
        """The steps that made the weights, the last one ours."""
        before = getattr(self.metanet, "recipe", None) or {"stages": []}
        config = {k: v for k, v in asdict(self.config).items() if k != "folder"}
        return {"stages": [*before["stages"], {"program": "meta_train.train", **config}]}

    def save_checkpoint(self) -> None:
        state = {
            "metanet": self.metanet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slots": [vars(slot) for slot in self.slots],
            "outer_step": self.outer_step,
            "best": self.best,
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
        self.outer_step, self.best = state["outer_step"], state["best"]


def make_metanet(config: Config) -> nn.Module:
    """The metanet to train, from weights or from a seeded random initialisation."""
    overrides = {
        key: value
        for key in ("output_scale", "magnitude_scale")
        if (value := getattr(config, key)) is not None
    }
    if config.metanet not in METANETS:
        raise ValueError(f"metanet '{config.metanet}': expected one of {', '.join(METANETS)}")
    cls = METANETS[config.metanet]
    with seeded(config.seed, 12):
        if config.init_from is None:
            return cls(cls.Config(**overrides))
        start = load_pretrained(config.init_from)
        if type(start) is FeedForward and cls is not FeedForward:
            start = cls.from_feedforward(start)
    if type(start) is not cls:
        raise ValueError(f"weights '{config.init_from}': expected metanet '{config.metanet}'; got '{metanet_name(start)}'")
    return reconfigure(start, **overrides)


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
    """Raises ValueError when a checkpoint was made with other settings (more outer steps are fine)."""
    odd = [k for k in given if k not in ("outer_steps", "folder") and list_of(saved.get(k)) != list_of(given[k])]
    if odd:
        raise ValueError(
            f"checkpoint '{path}': made with other settings: "
            + ", ".join(f"{k} = {saved.get(k)!r}, got {given[k]!r}" for k in odd)
        )


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(config.threads)
    MetaTrainer(config).run()


if __name__ == "__main__":
    main()
