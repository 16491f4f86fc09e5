"""U-Nets: parts of a skip that is cropped, padded or gated are the same neurons."""

from math import factorial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngopt.graph import build_graph
from ngopt.graph.connectivity import unconnected
from tests.automorphisms import count_automorphisms


def convs(n_in: int, n_out: int, padding: int, norm: bool) -> nn.Sequential:
    layers = []
    for size in (n_in, n_out):
        layers.append(nn.Conv2d(size, n_out, 3, padding=padding))
        if norm:
            layers.append(nn.BatchNorm2d(n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger et al. 2015 crop the skip; padded convolutions pad what comes up."""

    def __init__(self, padding: int):
        super().__init__()
        self.crops = padding == 0
        self.down = convs(1, 2, padding, not self.crops)
        self.bottom = convs(2, 3, padding, not self.crops)
        self.up = nn.ConvTranspose2d(3, 2, 2, 2)
        self.gate = nn.Conv2d(2, 1, 1)
        self.join = convs(4, 3, padding, not self.crops)
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.up(self.bottom(F.max_pool2d(skip, 2)))
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if self.crops:
            skip = skip[:, :, dy // 2 :, dx // 2 :][:, :, : x.shape[2], : x.shape[3]]
        else:
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        skip = skip * torch.sigmoid(self.gate(x))
        return self.out(self.join(torch.cat([skip, x], 1)))


def test_every_layer_of_a_u_net_can_be_permuted_by_itself():
    for padding, size in ((0, 24), (1, 15)):
        graph = build_graph(UNet(padding), torch.randn(2, 1, size, size))
        assert not unconnected(graph)
        # of the layers of 2 and of 3 neurons: all but the gate and the output
        expected = factorial(2) ** 3 * factorial(3) ** 4
        assert count_automorphisms(graph) == expected
