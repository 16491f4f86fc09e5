"""INRs of images and sine waves:
`python -m tasks.inr fit --data mnist --folder data/inr-mnist --processes 2`.

Fits a SIREN to every signal, from its own random weights, and writes shards into a
folder (`tasks.shards`). The same command resumes; `torchrun --nproc-per-node N -m
tasks.inr fit ...` divides the shards among ranks. `python -m tasks.inr show --folder
...` draws some.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import stack_module_state

from harness import cli
from harness.distributed import run_on_ranks
from harness.pictures import draw_curves, draw_rows
from harness.random import seeded
from harness.settings import check_counts
from tasks.networks.architectures import NetworkStack
from tasks.networks.siren import Siren, render
from tasks.shards import SPLITS, Networks, merged, read_settings, read_split
from tasks.sources.generation import Job, folder_of, jobs, make_shards
from tasks.sources.signals import MIDDLE, SINES, Signals, load_signals

PROGRAM = "tasks.inr fit"
# SIRENs that are fitted in one call, whose activations stay in a core's caches.
FITS_AT_ONCE = 16


@dataclass(frozen=True)
class FitConfig:
    """Settings of the fits; all random numbers follow from `seed`."""

    folder: str
    """Folder of the shards and the manifest."""
    data: str = "mnist"
    """mnist, fashion-mnist, cifar10 or sines."""
    train: int = 10_000
    """Signals of the training split, the first ones."""
    validation: int = 1000
    """Signals of the validation split."""
    test: int = 2000
    """Signals of the test split."""
    views: int = 1
    """Fits of each training signal, from different random weights."""
    width: int = 32
    hidden: int = 2
    """Hidden layers."""
    steps: int = 200
    lr: float = 3e-3
    """Learning rate of Adam, decayed linearly to zero."""
    shard: int = 256
    """Networks of a shard."""
    processes: int = 1
    """Processes, of one thread each; their number changes no network."""
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("views", "width", "hidden", "steps", "shard", "processes")
        check_counts(self, *SPLITS, *sizes)


@dataclass(frozen=True)
class ShowConfig:
    folder: str
    output: str = "inr.png"
    count: int = 8


def fit(
    points: Tensor, values: Tensor, widths: Sequence[int], steps: int, lr: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Fits SIRENs, from torch's random numbers: stacked parameters, and PSNRs in dB for
    a range of 1.

    Shapes: points (n, d), values (k, channels, n).
    """
    models: Any = [Siren(widths) for _ in range(len(values))]
    stacked, _ = stack_module_state(models)
    params = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    tensors = list(params.values())
    optimizer = torch.optim.Adam(tensors, lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / steps
    )
    for _ in range(steps):
        optimizer.zero_grad()
        # the sum over networks gives each the gradient of its own loss
        errors(tensors, points, values).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        psnr = -10 * errors(tensors, points, values).log10()
    return {name: value.detach() for name, value in params.items()}, psnr


def errors(params: Sequence[Tensor], points: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each network, (b,)."""
    return (render(params, points) - targets).square().mean((1, 2))


def signal_counts(config: FitConfig) -> dict[str, int]:
    return {split: getattr(config, split) for split in SPLITS}


def make(job: Job, config: FitConfig, signals: Mapping[str, Signals]) -> list[Networks]:
    """The networks of a shard, in one group."""
    count = getattr(config, job.split)
    data = signals[job.split]
    groups = []
    with seeded(config.seed, SPLITS.index(job.split), job.number):
        for fits in torch.arange(job.start, job.stop).split(FITS_AT_ONCE):
            index = fits % count
            values = data.values(index)
            hidden = [config.width] * config.hidden
            widths = [data.points.shape[1], *hidden, values.shape[1]]
            params, psnr = fit(data.points, values, widths, config.steps, config.lr)
            columns = {**data.columns(index), "view": fits // count, "psnr": psnr}
            architecture = {"kind": "siren", "widths": widths}
            groups.append(Networks(architecture, params, columns))
    return [merged(groups)]


def fit_all(config: FitConfig) -> None:
    """Makes the missing shards, on one or several ranks."""
    run_on_ranks(config.processes, fit_rank, config, check=load)


def load(config: FitConfig) -> dict[str, Signals]:
    """Raises ValueError if a split has fewer signals than the settings."""
    return load_signals(config.data, signal_counts(config), config.seed)


def fit_rank(config: FitConfig) -> None:
    shard = partial(make, config=config, signals=load(config))
    # with views, all signals for training are fitted, then all again
    counts = {**signal_counts(config), "train": config.views * config.train}
    wanted = jobs(counts, config.shard)
    make_shards(folder_of(config, PROGRAM), wanted, shard, quality=["psnr"])


def show(config: ShowConfig) -> None:
    """Draws signals above the outputs of their networks."""
    folder, output = Path(config.folder), Path(config.output)
    settings = read_settings(folder, PROGRAM)
    networks = next(read_split(folder, "train"))
    sizes = {split: settings[split] for split in SPLITS}
    signals = load_signals(settings["data"], sizes, settings["seed"])["train"]
    values = signals.values(networks.columns["index"][: config.count])
    params = NetworkStack.from_networks(networks).params
    rendered = render(params, signals.points)[: config.count]
    quality = networks.columns["psnr"][: config.count].tolist()
    titles = [f"{psnr:.1f} dB" for psnr in quality]
    if settings["data"] == SINES:
        rows = {"signal": values, "network": rendered}
        draw_curves(output, signals.points.squeeze(1), rows, titles)
    else:
        rows = {"signal": as_images(values), "network": as_images(rendered)}
        draw_rows(output, rows, titles)
    print(f"{len(values)} signals and their networks are in {config.output}.")


def as_images(values: Tensor) -> Tensor:
    """(b, channels, n) -> (b, channels, side, side) in [0, 1]."""
    side = isqrt(values.shape[-1])
    return (values + MIDDLE).clamp(0, 1).unflatten(-1, (side, side))


if __name__ == "__main__":
    cli.commands({"fit": (FitConfig, fit_all), "show": (ShowConfig, show)}, __doc__)
