"""Editing of images through their networks:
`python -m tasks.edit --data data/inr-mnist --folder runs/e`.

Trains a model to change the parameters of an image network so that it renders the image
dilated, or with more contrast (Zhou et al. 2023; Kofinas et al. 2024, section 4.2). The
model may return several networks, whose images are averaged (`--outputs 8`, arXiv
2602.01083). Writes what `tasks.classify` writes, and `edited.png`: images before and
after, with their targets.

Networks of `tasks.inr fit` are compared with the edited images that they were fitted
to, those of `tasks.published` with the edited images that they render.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from harness import cli
from harness.image_datasets import load_dataset
from harness.pictures import draw_rows
from harness.settings import check_choice, check_counts
from tasks.inr import PROGRAM as FIT
from tasks.learning.sirens import Sirens, read_sirens
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.models.base import NetworkModel, compile_steps
from tasks.networks.architectures import NetworkStack
from tasks.networks.siren import pixel_grid
from tasks.published import PROGRAM as PUBLISHED
from tasks.shards import check_column, read_manifest, read_settings
from tasks.sources.signals import MIDDLE

# Initial step size of the updates, in standard deviations of each parameter (Kofinas et
# al. 2024, public code).
FIRST_SCALE = 0.01
SHOWN = 8
CONTRAST = 1.5
# Height and width of the images of published networks, by channels: MNIST, CIFAR-10.
SIDES = {1: 28, 3: 32}


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("edit", self.edit, EDITS)
        check_counts(self, "outputs", "points")


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
        self.data = read_sirens(config.data, config.limit)
        images = original_images(config.data, self.data)
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


def original_images(folder: str, networks: Mapping[str, Sirens]) -> dict[str, Tensor]:
    """Images that networks of `tasks.inr fit` were fitted to, or that those of
    `tasks.published` render, by split, (n, channels, height, width) in [0, 1].

    Raises ValueError, which names the folder, for networks of another program, and for
    the number of an image that the data set does not have.
    """
    if read_manifest(Path(folder))["settings"].get("program") == PUBLISHED:
        return {split: rendered_images(networks[split].stack) for split in networks}
    data = load_dataset(read_settings(Path(folder), FIT)["data"])
    images = {}
    for split, (_, columns) in networks.items():
        pixels = getattr(data, split).images
        check_column(folder, columns, "index", len(pixels) - 1)
        images[split] = pixels[columns["index"]].float() / 255
    return images


@torch.no_grad()
def rendered_images(stack: NetworkStack) -> Tensor:
    """Images that networks render, in [0, 1]. Raises ValueError unless they have 1 or 3
    channels."""
    channels = stack.params[-1].shape[-1]  # of the last bias
    if channels not in SIDES:
        raise ValueError(
            f"networks: expected images of 1 or 3 channels; got {channels}"
        )
    shape = SIDES[channels], SIDES[channels]
    chunks = stack.split(EVALUATION_BATCH)
    return torch.cat([images_of(chunk, shape) for chunk in chunks]).clamp(0, 1)


def images_of(stack: NetworkStack, shape: Sequence[int]) -> Tensor:
    """Images of networks, (b, channels, *shape)."""
    outputs = stack.architecture.outputs(stack.params, pixel_grid(*shape))
    return outputs.mT.unflatten(-1, shape) + MIDDLE


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Editing), __doc__)
