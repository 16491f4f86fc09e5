"""Inputs whose first axis is no batch: lists of images, as detectors take them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngopt.graph import build_graph
from ngopt.graph.connectivity import unconnected


class Net(nn.Module):
    """Makes a batch of what it is given."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch
        self.first, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.out = nn.Linear(5, 2)

    def forward(self, *args, **kwargs) -> Tensor:
        x = self.norm(self.first(self.batch(*args, **kwargs))).relu()
        return self.out(x.mean((2, 3)))


def padded(images: list[Tensor]) -> Tensor:
    """As in torchvision and DETR."""
    batch = images[0].new_zeros(len(images), 3, 12, 12)
    for image, place in zip(images, batch, strict=True):
        image = (image - image.new_tensor([0.1, 0.2, 0.3])[:, None, None]) / 2
        image = F.interpolate(image[None], scale_factor=1.0, mode="bilinear")[0]
        place[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch


def image(height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(3, height, width)


INPUTS = {
    "padded list": (padded, ([image(8, 10), image(12, 6)],)),
    "stacked tuple": (torch.stack, ((image(), image()),)),
    "dict": (lambda x, y: torch.stack([x, y]), {"x": image(), "y": image()}),
    "one image": (lambda x: x[None], image()),
    "bytes": (
        lambda xs: torch.stack(xs) / 255,
        ([image().mul(255).to(torch.uint8)] * 2,),
    ),
    "parts of a cat": (lambda *xs: torch.cat([x[None] for x in xs]), (image(),) * 2),
}


@pytest.mark.parametrize("name", INPUTS)
def test_channels_of_an_image_are_the_input_neurons(name):
    batch, example = INPUTS[name]
    graph = build_graph(Net(batch), example)
    assert not unconnected(graph)
    block = next(b for b in graph.weights if b.elements.numel == 5 * 3 * 9)
    assert block.shape == (1, 5, 3)
    assert block.slot_shape == (3, 3)
    assert graph.groups[block.source].role == "input"


def test_rows_of_features_and_grey_images_have_a_batch_axis():
    rows = build_graph(nn.Sequential(nn.Linear(3, 3)), torch.rand(3, 3))
    assert rows.groups[rows.blocks[0].source].size == 3
    grey = Net(lambda x: x.expand(-1, 3, -1, -1))
    graph = build_graph(nn.Sequential(nn.Conv2d(1, 1, 1), grey), torch.rand(3, 1, 6, 6))
    assert not unconnected(graph)


def test_detector_is_whole():
    detection = pytest.importorskip("torchvision.models.detection")
    rpn = pytest.importorskip("torchvision.models.detection.rpn")
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    backbone.out_channels = 8
    model = detection.FasterRCNN(
        backbone,
        num_classes=3,
        min_size=64,
        max_size=80,
        rpn_anchor_generator=rpn.AnchorGenerator(((16, 32),), ((1.0,),)),
        box_batch_size_per_image=8,
        rpn_pre_nms_top_n_train=16,
        rpn_post_nms_top_n_train=8,
    )
    boxes = torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 60]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    images = [image(64, 80), image(72, 64)]
    graph = build_graph(model, (images, [target, target]))
    assert not unconnected(graph)
    assert not graph.unplaced


class Lost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.cumprod(x, 1).flip(1).cumsum(1)))


def test_lost_input_is_said():
    with pytest.warns(UserWarning, match=r"are lost: 'x' of shape .* behind 'cum"):
        build_graph(Lost(), torch.rand(2, 2, 4, 4))


class Selecting(nn.Module):
    """A layer has zero rows; others have rows in an order that data decide."""

    def __init__(self, has_condition: bool):
        super().__init__()
        self.has_condition = has_condition
        self.never, self.layer = nn.Linear(4, 4), nn.Linear(4, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.has_condition and x.sum() > 1e9:  # recorded, not exported
            return x
        none = self.never(x[x[:, 0] > 1e9] if self.has_condition else x[:0])
        order = x[:, 1].sort().indices
        _, which = torch.unique(x[:, 0].round(), return_inverse=True)
        rows = torch.cat([none, x]).index_select(0, order)[which]
        rows[rows[:, 0] > 1e9] = none
        return self.out(self.layer(rows[rows[:, 0] < 1e9]).relu())


@pytest.mark.parametrize("has_condition", [False, True])
def test_empty_and_sorted_rows_are_followed(has_condition):
    graph = build_graph(Selecting(has_condition), torch.rand(4, 4))
    # as no row reaches them
    assert unconnected(graph) == ["never.weight", "never.bias"]
    assert graph.unplaced == ("never.weight", "never.bias")
    assert set(graph.reasons.values()) == {"unused"}
