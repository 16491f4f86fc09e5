"""Images that `tasks.edit` edits, and the edits themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from harness.image_datasets import load_dataset
from tasks.inr import PROGRAM as FIT
from tasks.learning.image_networks import ImageNetworks
from tasks.learning.task import EVALUATION_BATCH
from tasks.networks.architectures import NetworkStack
from tasks.networks.siren import pixel_grid
from tasks.published import PROGRAM as PUBLISHED
from tasks.shards import SPLITS, check_column, read_manifest
from tasks.sources.signals import MIDDLE

CONTRAST = 1.5
# Height and width of the images of published networks, by channels: MNIST, CIFAR-10.
SIDES = {1: 28, 3: 32}
# The published format whose `index` is the image's number in its data set.
NUMBERED = "nfn"


def dilated(images: Tensor) -> Tensor:
    """The maximum over 3 x 3 pixels. (n, channels, height, width) in [0, 1]."""
    return max_pool2d(images, 3, stride=1, padding=1)


def contrasted(images: Tensor) -> Tensor:
    """With a larger difference to the mean of each image. (n, channels, height, width)
    in [0, 1]."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + CONTRAST * (images - mean)).clamp(0, 1)


EDITS = {"dilate": dilated, "contrast": contrasted}


def original_images(
    folder: str, dataset: str | None, networks: Mapping[str, ImageNetworks]
) -> dict[str, Tensor]:
    """Images that networks represent, by split, (n, channels, height, width) in [0, 1].

    dataset: of the images. None for that of `tasks.inr fit`, or to render published
    networks.

    Raises ValueError for networks of another program, and for a data set that is not
    theirs.
    """
    settings = read_manifest(Path(folder))["settings"]
    program = settings.get("program")
    if program == FIT:
        fitted = settings["data"]
        if dataset not in (None, fitted):
            raise ValueError(
                f"originals: expected '{fitted}', as in folder '{folder}'; "
                f"got '{dataset}'"
            )
        data = load_dataset(fitted)
    elif program == PUBLISHED:
        if dataset is None:
            return {key: rendered_images(own.stack) for key, own in networks.items()}
        if settings.get("format") != NUMBERED:
            raise ValueError(
                f"originals: expected networks of format {NUMBERED}, which have image "
                f"numbers; got '{settings.get('format')}'. Leave out --originals."
            )
        data = load_dataset(dataset)
    else:
        raise ValueError(
            f"folder '{folder}': expected networks of {FIT} or {PUBLISHED}; got those "
            f"of {program}"
        )
    known: dict[str, Tensor] = {}
    for split in SPLITS:
        known[split] = getattr(data, split).images
    if program == PUBLISHED:
        # numbered across all splits
        known = dict.fromkeys(SPLITS, torch.cat(list(known.values())))
    images = {}
    for split, own in networks.items():
        images[split] = numbered_images(folder, own, known[split])
    return images


def numbered_images(folder: str, networks: ImageNetworks, images: Tensor) -> Tensor:
    """The images of networks, by their numbers, in [0, 1].

    images: (n, channels, height, width) uint8.

    Raises ValueError, which names the folder, for a number out of range and for another
    number of channels.
    """
    check_column(folder, {"index": networks.index}, "index", 0, len(images) - 1)
    channels = output_channels(networks.stack)
    if channels != images.shape[1]:
        raise ValueError(
            f"folder '{folder}': expected networks of {images.shape[1]} channels, "
            f"as images have; got {channels}"
        )
    return images[networks.index].float() / 255


@torch.no_grad()
def rendered_images(stack: NetworkStack) -> Tensor:
    """Images that networks render, in [0, 1].

    Raises ValueError unless they have 1 or 3 channels.
    """
    channels = output_channels(stack)
    if channels not in SIDES:
        expected = " or ".join(map(str, SIDES))
        raise ValueError(
            f"networks: expected images of {expected} channels; got {channels}"
        )
    side = SIDES[channels]
    points = pixel_grid(side, side)
    images = []
    for chunk in stack.split(EVALUATION_BATCH):
        outputs = chunk.architecture.outputs(chunk.params, points)
        images.append(outputs.mT + MIDDLE)
    return torch.cat(images).unflatten(-1, (side, side)).clamp(0, 1)


def output_channels(stack: NetworkStack) -> int:
    last_bias = stack.params[-1]
    return last_bias.shape[-1]
