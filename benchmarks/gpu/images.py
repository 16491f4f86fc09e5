"""CIFAR-10 for a ResNet-18 and a small ViT, with horizontal flips."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.gpu.session import Session, Skipped, check_installed
from benchmarks.records import Record
from benchmarks.shapes import small_cnn
from harness.image_datasets import Split, batch_indices, load_dataset

FILE = "cifar10.safetensors"
BATCH = 128
EVALUATED_TOGETHER = 1000  # images


def resnet_18() -> nn.Module:
    """torchvision's, with the first layer of He et al. 2016 for images of 32 x 32."""
    import torchvision

    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.MaxPool2d(1)  # which does nothing
    return model


def vit() -> nn.Module:
    """6 blocks of width 384 on patches of 4 x 4: 10.7 M parameters."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 4, 6, 6, 384, 1536, num_classes=10)


NETWORKS = {"resnet-18": resnet_18, "vit": vit}


class Images:
    """The data set in memory, its batches and a network for it."""

    about: ClassVar[Record] = {}

    def __init__(self, session: Session, network: str):
        if session.data is None or not Path(session.data, FILE).is_file():
            raise Skipped(f"needs {FILE}; name its folder with --data")
        check_installed("torchvision")
        data = load_dataset("cifar10", session.data)
        self._train, self._held_out = data.train, data.validation
        self.model = small_cnn if session.tiny else NETWORKS[network]
        self.device = torch.device(session.device)

    def order(self, steps: int, seed: int = 0) -> Tensor:
        """Numbers of the images of each batch: (steps, BATCH)."""
        size = len(self._train)
        batches = [
            batch_indices(size, BATCH, seed=seed, step=step) for step in range(steps)
        ]
        return torch.stack(batches)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images, half of them flipped, and labels; the numbers decide which half."""
        images, labels = self._on_device(self._train, numbers)
        generator = torch.Generator().manual_seed(int(numbers.sum()))
        flipped = torch.rand(len(numbers), 1, 1, 1, generator=generator) < 0.5
        return images.where(flipped.to(self.device), images.flip(-1)), labels

    def validation_batches(self) -> list[tuple[Tensor, Tensor]]:
        numbers = torch.arange(len(self._held_out)).split(EVALUATED_TOGETHER)
        return [self._on_device(self._held_out, part) for part in numbers]

    def _on_device(self, split: Split, numbers: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = split.batch(numbers)
        return images.to(self.device), labels.to(self.device)
