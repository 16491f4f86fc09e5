"""Signals as networks:
`python -m tasks.inr fit --data mnist --folder data/inr-mnist --processes 2`.

Fits a SIREN to every image, or sine wave, each from random weights of its own, many at
once, into shards of a folder (`tasks.shards`); the same command goes on where it was
stopped, and `torchrun
--nproc-per-node N -m tasks.inr fit ...` divides the shards among ranks.
`python -m tasks.inr show --folder ...` draws some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.func import stack_module_state

from harness import cli
from harness.distributed import run_on_ranks
from harness.pictures import draw_curves, draw_rows
from harness.random import seeded
from harness.settings import check_counts, named_settings
from tasks.networks.siren import Siren, render
from tasks.shards import (
    SPLITS,
    Folder,
    Networks,
    merged,
    read_settings,
    read_split,
)
from tasks.sources.generation import Job, jobs, make_shards
from tasks.sources.signals import MIDDLE, SINES, Signals, load_signals

PROGRAM = "tasks.inr fit"
# SIRENs that are fit in one call: their activations stay in the caches of a core.
AT_ONCE = 16
QUALITY = ("psnr",)
# Settings that change no network.
NO_MATTER = ("folder", "processes")


@dataclass(frozen=True)
class FitConfig:
    """Settings of the fits; every random number follows from `seed`."""

    folder: str
    """Where shards and manifest go."""
    data: str = "mnist"
    """mnist, fashion-mnist, cifar10 or sines."""
    train: int = 10_000
    """Signals of the training split, from its first; likewise of the others."""
    validation: int = 1000
    test: int = 2000
    views: int = 1
    """Fits of each training signal, from different random weights."""
    width: int = 32
    hidden: int = 2
    """Layers of sines."""
    steps: int = 200
    lr: float = 3e-3
    """Of Adam, decayed linearly to zero."""
    shard: int = 256
    """Networks of a shard."""
    processes: int = 1
    """Processes, of one thread each; their number changes no network."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            *SPLITS,
            "views",
            "width",
            "hidden",
            "steps",
            "shard",
            "processes",
        )
        check_counts(self, *counts)


@dataclass(frozen=True)
class ShowConfig:
    folder: str
    output: str = "inr.png"
    count: int = 8
    skip_damaged: bool = False
    """Leave out shards that cannot be read, and say which, instead of ending."""


def fit(
    points: Tensor,
    values: Tensor,
    widths: Sequence[int],
    steps: int,
    lr: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """SIRENs of signals, from torch's random numbers: stacked parameters,
    and PSNRs in dB for a range of 1.

    Shapes: points (n, d), values (k, channels, n).
    """
    models = [Siren(widths) for _ in range(len(values))]
    stacked, _ = stack_module_state(models)  # pyright: ignore[reportArgumentType]
    params = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    weights, biases = layers_of(params)
    optimizer = torch.optim.Adam(params.values(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / steps
    )
    for _ in range(steps):
        optimizer.zero_grad()
        # a sum over networks, so that each has the gradient of its own loss
        errors(weights, biases, points, values).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        psnr = -10 * errors(weights, biases, points, values).log10()
    return {name: value.detach() for name, value in params.items()}, psnr


def errors(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    points: Tensor,
    targets: Tensor,
) -> Tensor:
    """Mean squared error of each of stacked SIRENs, (n,)."""
    return (render(weights, biases, points) - targets).square().mean((1, 2))


def layers_of(
    params: Mapping[str, Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of stacked SIRENs, layer by layer."""
    count = len(params) // 2
    weights, biases = (
        [params[f"layers.{k}.{kind}"] for k in range(count)]
        for kind in ("weight", "bias")
    )
    return weights, biases


def counts(config: FitConfig) -> dict[str, int]:
    """Fits of every split: all its signals once, then all again."""
    views = {"train": config.views}
    return {split: getattr(config, split) * views.get(split, 1) for split in SPLITS}


def make(job: Job, config: FitConfig, signals: Signals) -> Networks:
    """The networks of a shard."""
    count = getattr(config, job.split)
    fits = torch.arange(job.start, job.stop)
    points = signals.points
    found = []
    with seeded(config.seed, SPLITS.index(job.split), job.number):
        for some in fits.split(AT_ONCE):
            index, view = some % count, some // count
            values = signals.values(index)
            widths = (
                points.shape[1],
                *[config.width] * config.hidden,
                values.shape[1],
            )
            params, psnr = fit(points, values, widths, config.steps, config.lr)
            columns = {**signals.columns(index), "view": view, "psnr": psnr}
            found.append(
                Networks({"kind": "siren", "widths": list(widths)}, params, columns)
            )
    return merged(found)


def folder_of(config: FitConfig) -> Folder:
    settings = named_settings(config, NO_MATTER)
    return Folder(Path(config.folder), {"program": PROGRAM, **settings})


def fit_all(config: FitConfig) -> None:
    """Makes the shards that are missing, on one or several ranks."""
    run_on_ranks(config.processes, fit_rank, config, check=load)


def load(config: FitConfig) -> dict[str, Signals]:
    """The signals. Raises ValueError if a split has fewer than are asked for."""
    return load_signals(
        config.data,
        {split: getattr(config, split) for split in SPLITS},
        config.seed,
    )


def fit_rank(config: FitConfig) -> None:
    signals = load(config)

    def groups(job: Job) -> list[Networks]:
        return [make(job, config, signals[job.split])]

    make_shards(folder_of(config), jobs(counts(config), config.shard), groups, QUALITY)


def show(config: ShowConfig) -> None:
    """Draws signals and what their networks say, one above the other."""
    folder = Path(config.folder)
    settings = read_settings(folder, PROGRAM)
    networks = next(read_split(folder, "train", config.skip_damaged))
    asked = {split: settings[split] for split in SPLITS}
    signals = load_signals(settings["data"], asked, settings["seed"])["train"]
    values = signals.values(networks.columns["index"][: config.count])
    weights, biases = layers_of(
        {name: value[: config.count] for name, value in networks.params.items()}
    )
    rows = {
        "signal": values,
        "network": render(weights, biases, signals.points),
    }
    titles = [
        f"{psnr:.1f} dB" for psnr in networks.columns["psnr"][: config.count].tolist()
    ]
    if settings["data"] == SINES:
        draw_curves(Path(config.output), signals.points.squeeze(1), rows, titles)
    else:
        side = isqrt(values.shape[-1])
        images = {
            name: (x + MIDDLE).clamp(0, 1).unflatten(-1, (side, side))
            for name, x in rows.items()
        }
        draw_rows(Path(config.output), images, titles)
    print(f"{len(values)} signals and their networks are in {config.output}.")


if __name__ == "__main__":
    cli.commands({"fit": (FitConfig, fit_all), "show": (ShowConfig, show)}, __doc__)
