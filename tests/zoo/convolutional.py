"""Networks on images and sequences, with convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutional blocks, one with a skip as it is, one with a projected skip;
    squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.squeeze = nn.Conv2d(6, 3, 1)
        self.excite = nn.Conv2d(3, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + self.bn3(self.down(x)))
        gate = torch.sigmoid(
            self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        )
        return self.fc((x * gate).mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions, GroupNorm, channel shuffle, concatenation,
    PReLU, flattening."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.act = nn.PReLU(6)
        self.point = nn.Conv2d(10, 4, 1)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2, groups=1)
        self.fc = nn.Linear(3 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.depthwise(x))
        y = self.act(self.norm(self.grouped(x)))
        x = self.instance(self.point(F.channel_shuffle(torch.cat([x, y], 1), 2)))
        return self.fc(F.max_pool2d(self.up(F.gelu(x)), 2).flatten(1))


class Shuffled(nn.Module):
    """A pixel shuffle, behind which a channel is another neuron in every place,
    then norms and a convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.up = nn.Conv2d(3, 16, 3, padding=1)
        self.batch = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(F.pixel_shuffle(self.up(torch.tanh(self.stem(x))), 2))
        return self.out(torch.tanh(self.group(F.relu(x))))


class UNet(nn.Module):
    """One level down and up again, with a skip that is concatenated (Ronneberger et al.
    2015)."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.bottom = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.joint = nn.Conv2d(6, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.down(x)))
        y = self.up(F.relu(self.bottom(F.max_pool2d(x, 2))))
        return self.out(F.relu(self.joint(torch.cat([y, x], 1))))


class Aggregated(nn.Module):
    """ResNeXt: a bottleneck with a grouped convolution,
    squeezed and excited by linear layers (Xie et al. 2017)."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3)
        self.narrow = nn.Conv2d(width, 6, 1, bias=False)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.wide = nn.Conv2d(6, width, 1)
        self.norm1 = nn.BatchNorm2d(6)
        self.norm2 = nn.BatchNorm2d(6)
        self.squeeze = nn.Linear(width, 2)
        self.excite = nn.Linear(2, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.wide(
            F.relu(self.norm2(self.grouped(F.relu(self.norm1(self.narrow(x))))))
        )
        pooled = F.adaptive_avg_pool2d(y, 1).view(y.shape[0], y.shape[1])
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled)))).view(
            *pooled.shape, 1, 1
        )
        return self.head((x + y * gate).mean((2, 3)))


class InvertedBottleneck(nn.Module):
    """MBConv: expansion, depthwise convolution, squeeze and excitation, projection,
    depth dropped at random."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, 2, 1)
        self.norm = nn.BatchNorm2d(3)
        self.expand = nn.Sequential(
            nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(5, 5, 3, 1, 1, groups=5, bias=False), nn.BatchNorm2d(5), nn.SiLU()
        )
        self.squeeze = nn.Conv2d(5, 2, 1)
        self.excite = nn.Conv2d(2, 5, 1)
        self.project = nn.Conv2d(5, 3, 1, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(
            self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        )
        y = self.norm(self.project(y))
        if self.training:
            y = y / 0.8 * torch.floor(0.8 + torch.rand(len(y), 1, 1, 1, dtype=y.dtype))
        return self.head((x + y).mean((2, 3)))


class ConformerConvolution(nn.Module):
    """The convolution module of a Conformer: GLU, depthwise, norm,
    on channels that come last (Gulati et al. 2020)."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.norm1 = nn.LayerNorm(width)
        self.point1 = nn.Conv1d(width, 2 * width, 1)
        self.point2 = nn.Conv1d(width, width, 1)
        self.depthwise = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.norm2 = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.glu(self.point1(self.norm1(x).transpose(1, 2)), 1)
        y = self.point2(F.silu(self.norm2(self.depthwise(y)))).transpose(1, 2)
        return self.head(x + y)


class DenseBlock(nn.Module):
    """Every layer reads all layers before it, through a norm of its own (Huang et al.
    2017)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Linear(7, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * k) for k in range(3))
        self.layers = nn.ModuleList(
            nn.Conv2d(3 + 2 * k, 2, 3, padding=1, bias=False) for k in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            maps.append(layer(F.relu(norm(torch.cat(maps, 1)))))
        return self.head(F.relu(self.norms[-1](torch.cat(maps, 1))).mean((2, 3)))


class Modulated(nn.Module):
    """A second input scales and shifts channels: FiLM,
    or with a norm before it AdaIN (Huang & Belongie 2017)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = norm
        self.style = nn.Linear(3, 8)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        return self.out(F.relu((1 + scale) * self.norm(self.conv(x)) + shift)).mean(
            (2, 3)
        )
