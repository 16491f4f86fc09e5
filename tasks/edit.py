"""Editing of images through their networks:
`python -m tasks.edit --data data/inr-mnist --folder runs/e`.

Trains a model to change the parameters of an image network so that what it renders is
the image dilated, or with more contrast (Zhou et al. 2023; Kofinas et al. 2024, section
4.2). The model may make several networks of one, whose images are averaged
(`--outputs 8`, arXiv 2602.01083). Writes what `tasks.classify` writes, and
`edited.png`: images before and after, beside what they should be.

Networks of `tasks.inr fit` are compared with the edited images that they were fitted
to. Networks of `tasks.published` are compared with the edited images that they render,
or, with `--originals mnist`, with those of a data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from harness import cli
from harness.distributed import Ranks
from harness.image_datasets import DATASETS, load_dataset
from harness.pictures import draw_rows
from harness.settings import check_counts
from tasks.inr import PROGRAM
from tasks.learning.image_networks import ImageNetworks, read_image_networks
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.models.base import NetworkModel, compile_steps
from tasks.networks.architectures import Stack
from tasks.networks.siren import grid
from tasks.published import PROGRAM as PUBLISHED
from tasks.shards import SPLITS, check_column, read_manifest
from tasks.sources.signals import MIDDLE

# How far an untrained model moves parameters, in deviations (Kofinas et al. 2024,
# public code).
FIRST_SCALE = 0.01
SHOWN = 8
CONTRAST = 1.5
# Rows and columns of what published networks render, by their channels: MNIST's,
# CIFAR-10's.
SIDES = {1: 28, 3: 32}
# Of published networks, those whose `index` is an image's number in its data set.
NUMBERED = "nfn"


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of an editing."""

    edit: str = "dilate"
    """dilate, or contrast."""
    outputs: int = 1
    """Networks that are made of one; their images are averaged."""
    points: int = 256
    """Pixels of each image that a training step looks at."""
    originals: str | None = None
    """Images to edit, for networks of `tasks.published --format nfn`: mnist,
    fashion-mnist or cifar10, whose images their files are numbered by. None: images of
    `tasks.inr fit`, or what published networks render."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit not in EDITS:
            raise ValueError(
                f"edit: expected one of {', '.join(EDITS)}; got '{self.edit}'"
            )
        check_counts(self, "outputs", "points")
        if self.originals is not None and self.originals not in DATASETS:
            known = ", ".join(DATASETS)
            raise ValueError(
                f"originals: expected one of {known}; got '{self.originals}'"
            )


def dilated(images: Tensor) -> Tensor:
    """Each pixel the largest of its 3 x 3 neighbours. (n, channels, height, width) in
    [0, 1]."""
    return max_pool2d(images, 3, stride=1, padding=1)


def contrasted(images: Tensor) -> Tensor:
    """Differences from each image's mean enlarged. (n, channels, height, width) in [0,
    1]."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + CONTRAST * (images - mean)).clamp(0, 1)


EDITS = {"dilate": dilated, "contrast": contrasted}


def originals(config: Config, data: Mapping[str, ImageNetworks]) -> dict[str, Tensor]:
    """The images of every split that are edited, (n, channels, height, width) in [0,
    1].

    Raises ValueError for networks of another program, and for those whose images are
    not known.
    """
    settings = read_manifest(Path(config.data))["settings"]
    program = settings.get("program")
    if program not in (PROGRAM, PUBLISHED):
        raise ValueError(
            f"folder '{config.data}': expected networks of {PROGRAM} or {PUBLISHED}; got "
            f"those of {program}"
        )
    if program == PUBLISHED and config.originals is None:
        return {split: rendered_images(found.stack) for split, found in data.items()}
    if program == PUBLISHED and settings.get("format") != NUMBERED:
        raise ValueError(
            f"originals: expected networks of format {NUMBERED}, which are numbered as images "
            f"are; got '{settings.get('format')}'. Leave out --originals."
        )
    if program == PROGRAM and config.originals not in (None, settings["data"]):
        raise ValueError(
            f"originals: expected '{settings['data']}', as in folder '{config.data}'; got "
            f"'{config.originals}'"
        )
    images = load_dataset(config.originals or settings["data"])
    known: dict[str, Tensor] = {}
    for split in SPLITS:
        known[split] = getattr(images, split).images
    if program == PUBLISHED:  # counts the images of all splits together
        everything = torch.cat(list(known.values()))
        known = {split: everything for split in SPLITS}
    return {
        split: images_of(config.data, found, known[split])
        for split, found in data.items()
    }


def images_of(folder: str, networks: ImageNetworks, known: Tensor) -> Tensor:
    """The images that networks are numbered by, in [0, 1].

    known: (n, channels, height, width) uint8. Raises ValueError, which names the
    folder, for numbers without an image and for other channels.
    """
    check_column(folder, {"index": networks.index}, "index", 0, len(known) - 1)
    channels = networks.stack.params[-1].shape[-1]
    if channels != known.shape[1]:
        raise ValueError(
            f"folder '{folder}': expected networks of {known.shape[1]} channels, as images have; "
            f"got {channels}"
        )
    return known[networks.index].float() / 255


@torch.no_grad()
def rendered_images(stack: Stack) -> Tensor:
    """What networks render, in [0, 1]. Raises ValueError for other channels than 1 and
    3."""
    channels = stack.params[-1].shape[-1]
    if channels not in SIDES:
        raise ValueError(
            f"networks: expected images of {' or '.join(map(str, SIDES))} channels; got {channels}"
        )
    side = SIDES[channels]
    points = grid(side, side)
    images = []
    for piece in torch.arange(stack.count).split(EVALUATION_BATCH):
        some = stack.select(piece)
        images.append(some.architecture.outputs(some.params, points).mT + MIDDLE)
    return torch.cat(images).unflatten(-1, (side, side)).clamp(0, 1)


class Editor(nn.Module):
    """Networks to changed networks.

    Changes are in deviations of each parameter over the training data,
    times a learned factor for each.

    Shapes: a stack of b networks -> of every parameter (b, outputs, *shape).
    """

    deviations: Tensor

    def __init__(self, model: NetworkModel, example: Stack):
        super().__init__()
        self.model = model
        self.scales = nn.Parameter(torch.full((len(example.params),), FIRST_SCALE))
        self.register_buffer(
            "deviations", torch.stack([p.std() for p in example.params])
        )

    def forward(self, stack: Stack) -> list[Tensor]:
        factors = (self.scales * self.deviations).unbind()
        triples = zip(stack.params, self.model.updates(stack), factors, strict=True)
        return [
            value.unsqueeze(1) + factor * update for value, update, factor in triples
        ]


class Editing(NetworkTask[Config]):
    """Mean squared error of what edited networks render; the score is its negative."""

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        super().__init__(config, ranks)
        self.data = read_image_networks(config)
        edit = EDITS[config.edit]
        self.targets = {
            split: edit(images)
            for split, images in originals(config, self.data).items()
        }
        train = self.data["train"].stack
        self.points = grid(*self.targets["train"].shape[-2:])
        model = self.make_model([train], config.outputs, edits=True)
        self.model = Editor(model, self.prepared(train))
        if config.compiled:
            compile_steps(self.model)

    def loss(self, step: int) -> Tensor:
        train = self.data["train"]
        own = self.batch(len(train.labels), step)
        some = torch.randperm(len(self.points))[: self.config.points]
        targets = self.targets["train"][own].flatten(2)[..., some]
        stack = train.stack.select(own)
        rendered = self.rendered(
            stack, self.model(self.prepared(stack)), self.points[some]
        )
        return (rendered - targets).square().mean()

    def rendered(
        self, stack: Stack, edited: Sequence[Tensor], points: Tensor
    ) -> Tensor:
        """What edited networks of a stack say of points, mean over the outputs, (b,
        channels, points)."""
        params = [value.flatten(0, 1) for value in edited]
        # (b * outputs, points, channels)
        said = stack.architecture.outputs(params, points)
        mean = said.unflatten(0, (stack.count, -1)).mean(1)
        return mean.mT + MIDDLE

    def all_rendered(self, stack: Stack) -> Tensor:
        """The whole images of edited networks, (b, channels, pixels), outside of
        training."""
        return self.rendered(stack, self.eval_outputs(stack), self.points)

    def score(self) -> float:
        return -self.error("validation")

    def error(self, split: str) -> float:
        """Mean squared error over a split."""
        stack, targets = self.data[split].stack, self.targets[split].flatten(2)
        at_once = max(1, EVALUATION_BATCH // self.config.outputs)
        total = 0.0
        for piece in torch.arange(stack.count).split(at_once):
            rendered = self.all_rendered(stack.select(piece))
            error = (rendered - targets[piece]).square().mean()
            total += error.item() * len(piece)
        return total / stack.count

    def results(self) -> Mapping[str, float]:
        """Errors of the model, and of networks that are left as they are."""
        self.draw()
        stack, targets = self.data["test"].stack, self.targets["test"]
        unchanged = (self.unedited(stack) - targets).square().mean().item()
        return {"mse": self.error("test"), "mse_unedited": unchanged}

    def unedited(self, stack: Stack) -> Tensor:
        """What networks render, (b, channels, height, width)."""
        said = stack.architecture.outputs(stack.params, self.points)
        return said.mT.unflatten(-1, self.targets["test"].shape[-2:]) + MIDDLE

    def draw(self) -> None:
        stack = self.data["test"].stack.select(slice(SHOWN))
        targets = self.targets["test"][:SHOWN]
        edited = self.all_rendered(stack).view_as(targets)
        rows = {
            "network": self.unedited(stack),
            "edited": edited,
            "target": targets,
        }
        shown = {name: images.clamp(0, 1) for name, images in rows.items()}
        draw_rows(Path(self.config.folder, "edited.png"), shown)


def run(config: Config) -> None:
    run_task(config, Editing)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
