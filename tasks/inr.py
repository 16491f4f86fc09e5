"""Images as networks: `python -m tasks.inr fit --data mnist --folder data/inr-mnist --processes 2`.

Fits a SIREN to every image, each from random weights of its own, many at once, into shards of a folder
(`tasks.shards`); the same command goes on where it was stopped, and `torchrun --nproc-per-node N -m
tasks.inr fit ...` divides the shards among ranks. `python -m tasks.inr show --folder ...` draws some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import stack_module_state

from tasks import cli
from tasks.datasets import ImageDataset, Split, load_dataset
from tasks.generation import Job, jobs, make_shards, on_ranks
from tasks.pictures import draw_rows
from tasks.random import seeded
from tasks.shards import SPLITS, Folder, Networks, merged, read_manifest, read_shard, shard_paths
from tasks.siren import Siren, grid, render

# SIRENs that are fit in one call: their activations stay in the caches of a core.
AT_ONCE = 16
# The middle of a pixel's range, which a SIREN does not have to learn.
MIDDLE = 0.5
QUALITY = ("psnr",)
# Settings that change no network.
NO_MATTER = ("folder", "processes")


@dataclass(frozen=True)
class FitConfig:
    """Settings of the fits; every random number follows from `seed`."""

    folder: str
    """Where shards and manifest go."""
    data: str = "mnist"
    """mnist, fashion-mnist or cifar10."""
    train: int = 10_000
    """Images of the training split, from its first; likewise of the others."""
    validation: int = 1000
    test: int = 2000
    views: int = 1
    """Fits of each training image, from different random weights."""
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
        for key in ("train", "views", "width", "hidden", "steps", "shard", "processes"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: expected 1 or more; got {getattr(self, key)}")


@dataclass(frozen=True)
class ShowConfig:
    folder: str
    output: str = "inr.png"
    count: int = 8


def fit(images: Tensor, widths: Sequence[int], steps: int, lr: float) -> tuple[dict[str, Tensor], Tensor]:
    """SIRENs of images, from torch's random numbers: stacked parameters, and PSNRs in dB.

    images: (n, channels, height, width) in [0, 1]. Image = SIREN + .5.
    """
    models = [Siren(widths) for _ in range(len(images))]
    stacked, _ = stack_module_state(models)  # pyright: ignore[reportArgumentType]
    params = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    weights, biases = layers_of(params)
    points, targets = grid(*images.shape[-2:]), images.flatten(2) - MIDDLE
    optimizer = torch.optim.Adam(params.values(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        # a sum over networks, so that each has the gradient of its own loss
        errors(weights, biases, points, targets).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        psnr = -10 * errors(weights, biases, points, targets).log10()
    return {name: value.detach() for name, value in params.items()}, psnr


def errors(weights: Sequence[Tensor], biases: Sequence[Tensor], points: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each of stacked SIRENs, (n,)."""
    return (render(weights, biases, points) - targets).square().mean((1, 2))


def layers_of(params: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of stacked SIRENs, layer by layer."""
    count = len(params) // 2
    weights, biases = ([params[f"layers.{k}.{kind}"] for k in range(count)] for kind in ("weight", "bias"))
    return weights, biases


def widths_of(config: FitConfig, channels: int) -> tuple[int, ...]:
    return (2, *[config.width] * config.hidden, channels)


def counts(config: FitConfig) -> dict[str, int]:
    """Fits of every split: all its images once, then all again."""
    views = {"train": config.views}
    return {split: getattr(config, split) * views.get(split, 1) for split in SPLITS}


def make(job: Job, config: FitConfig, images: Split) -> Networks:
    """The networks of a shard."""
    count = getattr(config, job.split)
    fits = torch.arange(job.start, job.stop)
    index, view = fits % count, fits // count
    widths = widths_of(config, images.images.shape[1])
    pixels = images.images[index].float() / 255
    architecture = {"kind": "siren", "widths": list(widths)}
    rows = zip(*(x.split(AT_ONCE) for x in (pixels, images.labels[index], index, view)), strict=True)
    found = []
    with seeded(config.seed, SPLITS.index(job.split), job.number):
        for some, label, own, own_view in rows:
            params, psnr = fit(some, widths, config.steps, config.lr)
            columns = {"label": label, "index": own, "view": own_view, "psnr": psnr}
            found.append(Networks(architecture, params, columns))
    return merged(found)


def folder_of(config: FitConfig) -> Folder:
    settings = {key: value for key, value in asdict(config).items() if key not in NO_MATTER}
    return Folder(Path(config.folder), {"program": "tasks.inr fit", **settings})


def fit_all(config: FitConfig) -> None:
    """Makes the shards that are missing, on one or several ranks."""
    on_ranks(config.processes, fit_rank, config, check=load_images)


def load_images(config: FitConfig) -> ImageDataset:
    """The data set. Raises ValueError if a split has fewer images than are asked for."""
    data = load_dataset(config.data)
    for split in SPLITS:
        asked, there = getattr(config, split), len(getattr(data, split))
        if asked > there:
            raise ValueError(f"{split}: expected at most {there} images; got {asked}")
    return data


def fit_rank(config: FitConfig) -> None:
    data = load_images(config)

    def groups(job: Job) -> list[Networks]:
        return [make(job, config, getattr(data, job.split))]

    make_shards(folder_of(config), jobs(counts(config), config.shard), groups, QUALITY)


def show(config: ShowConfig) -> None:
    """Draws images and what their networks say, one above the other."""
    folder = Path(config.folder)
    settings = read_manifest(folder)["settings"]
    (networks, *_) = read_shard(shard_paths(folder, "train")[0])
    images = load_dataset(settings["data"]).train
    index = networks.columns["index"][: config.count]
    originals = images.images[index].float() / 255
    weights, biases = layers_of({name: value[: config.count] for name, value in networks.params.items()})
    points = grid(*originals.shape[-2:])
    rendered = (render(weights, biases, points) + MIDDLE).clamp(0, 1).view_as(originals)
    titles = [f"{psnr:.1f} dB" for psnr in networks.columns["psnr"][: config.count].tolist()]
    draw_rows(Path(config.output), {"image": originals, "network": rendered}, titles)
    print(f"{len(index)} images and their networks are in {config.output}.")


if __name__ == "__main__":
    cli.commands({"fit": (FitConfig, fit_all), "show": (ShowConfig, show)}, __doc__)
