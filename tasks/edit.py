"""Editing of images through their networks:
`python -m tasks.edit --data data/inr-mnist --folder runs/e`.

Trains a model to change the parameters of an image network so that it renders the image
dilated, or with more contrast (Zhou et al. 2023; Kofinas et al. 2024, section 4.2). The
model may return several networks, whose images are averaged (`--outputs 8`, arXiv
2602.01083). Writes what `tasks.classify` writes, and `edited.png`: images before and
after, with their targets.

Networks of `tasks.inr fit` are compared with the edited images that they were fitted
to. Networks of `tasks.published` are compared with the edited images that they render,
or, with `--originals mnist`, with those of a data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from harness import cli
from harness.image_datasets import DATASETS, load_dataset
from harness.pictures import draw_rows
from harness.settings import check_choice, check_counts
from tasks.inr import PROGRAM as FIT
from tasks.learning.sirens import Sirens, read_sirens
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.models.base import NetworkModel, compile_steps
from tasks.networks.architectures import NetworkStack
from tasks.networks.siren import pixel_grid
from tasks.published import PROGRAM as PUBLISHED
from tasks.shards import SPLITS, check_column, read_manifest
from tasks.sources.signals import MIDDLE

# Initial step size of the updates, in standard deviations of each parameter (Kofinas et
# al. 2024, public code).
FIRST_SCALE = 0.01
SHOWN = 8
CONTRAST = 1.5
# Height and width of the images of published networks, by channels: MNIST, CIFAR-10.
SIDES = {1: 28, 3: 32}
# The published format whose `index` is the image's number in its data set.
NUMBERED = "nfn"


def dilated(images: Tensor) -> Tensor:
    """Images with the maximum over 3 x 3 pixels.

    Shapes: (n, channels, height, width) in [0, 1] -> the same.
    """
    return max_pool2d(images, 3, stride=1, padding=1)


def contrasted(images: Tensor) -> Tensor:
    """Images with a larger difference to their mean.

    Shapes: (n, channels, height, width) in [0, 1] -> the same.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + CONTRAST * (images - mean)).clamp(0, 1)


EDITS = {"dilate": dilated, "contrast": contrasted}


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of an editing task."""

    edit: str = "dilate"
    """dilate, or contrast."""
    outputs: int = 1
    """Networks that are made of one; their images are averaged."""
    points: int = 256
    """Random pixels of each image in a training step."""
    originals: str | None = None
    """Data set of the images of `tasks.published --format nfn`: mnist, fashion-mnist or
    cifar10, whose images their files are numbered by. None: images of `tasks.inr fit`,
    or those that published networks render."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("edit", self.edit, EDITS)
        check_counts(self, "outputs", "points")
        if self.originals is not None:
            check_choice("originals", self.originals, DATASETS)


class Editor(nn.Module):
    """Adds the updates of a model to parameters.

    Updates are in standard deviations of each parameter over the training data, times a
    learned scale per parameter.

    Shapes: a stack of b networks -> (b, outputs, *shape) for every parameter.
    """

    deviations: Tensor

    def __init__(self, model: NetworkModel, example: NetworkStack):
        super().__init__()
        self.model = model
        self.scales = nn.Parameter(torch.full((len(example.params),), FIRST_SCALE))
        deviations = torch.stack([p.std() for p in example.params])
        self.register_buffer("deviations", deviations)

    def forward(self, stack: NetworkStack) -> list[Tensor]:
        factors = (self.scales * self.deviations).unbind()
        updates = self.model.updates(stack)
        return [
            value.unsqueeze(1) + factor * update
            for value, update, factor in zip(
                stack.params, updates, factors, strict=True
            )
        ]


class Editing(NetworkTask[Config]):
    """The loss is the mean squared error of the images of edited networks; the score is
    its negative."""

    def build(self, config: Config) -> None:
        self.data = read_sirens(config.data, config.skip_damaged, config.limit)
        images = original_images(config.data, config.originals, self.data)
        edit = EDITS[config.edit]
        self.targets = {split: edit(originals) for split, originals in images.items()}
        train = self.data["train"].stack
        self.points = pixel_grid(*self.targets["train"].shape[-2:])
        model = self.make_model([train], config.outputs, edits=True)
        self.model = Editor(model, self.prepared(train))
        if config.compiled:
            compile_steps(self.model)

    def loss(self, step: int) -> Tensor:
        train = self.data["train"]
        index = self.batch(train.stack.count, step)
        pixels = torch.randperm(len(self.points))[: self.config.points]
        targets = self.targets["train"][index].flatten(2)[..., pixels]
        stack = train.stack.select(index)
        edited = self.model(self.prepared(stack))
        rendered = self.render(stack, edited, self.points[pixels])
        return (rendered - targets).square().mean()

    def render(
        self, stack: NetworkStack, edited: Sequence[Tensor], points: Tensor
    ) -> Tensor:
        """Images of edited networks at points, mean over the outputs, (b, channels,
        points)."""
        params = [value.flatten(0, 1) for value in edited]
        # (b * outputs, points, channels)
        values = stack.architecture.outputs(params, points)
        return values.unflatten(0, (stack.count, -1)).mean(1).mT + MIDDLE

    def edited_images(self, stack: NetworkStack) -> Tensor:
        """Images of edited networks outside of training, (b, channels, pixels)."""
        return self.render(stack, self.eval_outputs(stack), self.points)

    def score(self) -> float:
        return -self.error("validation")

    def error(self, split: str) -> float:
        """Mean squared error over a split."""
        stack, targets = self.data[split].stack, self.targets[split].flatten(2)
        at_once = max(1, EVALUATION_BATCH // self.config.outputs)
        total = 0.0
        chunks = zip(stack.split(at_once), targets.split(at_once), strict=True)
        for chunk, images in chunks:
            error = (self.edited_images(chunk) - images).square().mean()
            total += error.item() * chunk.count
        return total / stack.count

    def results(self) -> Mapping[str, float]:
        """Errors of edited and of unedited networks."""
        stack, targets = self.data["test"].stack, self.targets["test"]
        unedited = images_of(stack, targets.shape[-2:])
        shown = targets[:SHOWN]
        edited = self.edited_images(stack.select(slice(SHOWN)))
        pictures = {
            "network": unedited[:SHOWN].clamp(0, 1),
            "edited": edited.view_as(shown).clamp(0, 1),
            "target": shown.clamp(0, 1),
        }
        draw_rows(Path(self.config.folder, "edited.png"), pictures)
        mse_unedited = (unedited - targets).square().mean().item()
        return {"mse": self.error("test"), "mse_unedited": mse_unedited}


def original_images(
    folder: str, dataset: str | None, networks: Mapping[str, Sirens]
) -> dict[str, Tensor]:
    """Images that networks represent, by split, (n, channels, height, width) in [0, 1].

    dataset: of the images. None for that of `tasks.inr fit`, or to render published
    networks.

    Raises ValueError for networks of another program, and for a data set that is not
    theirs.
    """
    settings = read_manifest(Path(folder))["settings"]
    program = settings.get("program")
    is_published = program == PUBLISHED
    if program not in (FIT, PUBLISHED):
        raise ValueError(
            f"folder '{folder}': expected networks of {FIT} or {PUBLISHED}; got those "
            f"of {program}"
        )
    if is_published and dataset is None:
        return {split: rendered_images(networks[split].stack) for split in networks}
    if is_published and settings.get("format") != NUMBERED:
        raise ValueError(
            f"originals: expected networks of format {NUMBERED}, which have image "
            f"numbers; got '{settings.get('format')}'. Leave out --originals."
        )
    name = settings.get("data", dataset)  # published networks do not store it
    if dataset not in (None, name):
        raise ValueError(
            f"originals: expected '{name}', as in folder '{folder}'; got '{dataset}'"
        )
    data = load_dataset(name)
    images: dict[str, Tensor] = {s: getattr(data, s).images for s in SPLITS}
    if is_published:
        # numbered across all splits
        images = dict.fromkeys(SPLITS, torch.cat(list(images.values())))
    return {
        split: numbered_images(folder, networks[split], images[split])
        for split in networks
    }


def numbered_images(folder: str, networks: Sirens, images: Tensor) -> Tensor:
    """The images of networks, by their numbers, in [0, 1].

    images: (n, channels, height, width) uint8.

    Raises ValueError, which names the folder, for a number out of range and for another
    number of channels.
    """
    check_column(folder, networks.columns, "index", len(images) - 1)
    channels = output_channels(networks.stack)
    if channels != images.shape[1]:
        raise ValueError(
            f"folder '{folder}': expected networks of {images.shape[1]} channels, "
            f"as images have; got {channels}"
        )
    return images[networks.columns["index"]].float() / 255


@torch.no_grad()
def rendered_images(stack: NetworkStack) -> Tensor:
    """Images that networks render, in [0, 1]. Raises ValueError unless they have 1 or 3
    channels."""
    channels = output_channels(stack)
    if channels not in SIDES:
        expected = " or ".join(map(str, SIDES))
        raise ValueError(
            f"networks: expected images of {expected} channels; got {channels}"
        )
    shape = SIDES[channels], SIDES[channels]
    chunks = stack.split(EVALUATION_BATCH)
    return torch.cat([images_of(chunk, shape) for chunk in chunks]).clamp(0, 1)


def images_of(stack: NetworkStack, shape: Sequence[int]) -> Tensor:
    """Images of networks, (b, channels, *shape)."""
    outputs = stack.architecture.outputs(stack.params, pixel_grid(*shape))
    return outputs.mT.unflatten(-1, shape) + MIDDLE


def output_channels(stack: NetworkStack) -> int:
    return stack.params[-1].shape[-1]  # of the last bias


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Editing), __doc__)
