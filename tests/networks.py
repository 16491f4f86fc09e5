"""Small networks that the tests share."""

from itertools import pairwise

from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    """Kernels of several sizes, one layer without bias, a flattened map."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(),
        nn.Conv2d(4, 5, (2, 1), bias=False), nn.Tanh(),
        nn.Conv2d(5, 3, 4, padding=2, dilation=2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3 * 6, 6), nn.GELU(), nn.Linear(6, 3),
    )  # fmt: skip


class Between(nn.Module):
    """A function between two linear layers, whose sizes are (inputs, outputs)."""

    def __init__(self, function, first, last):
        super().__init__()
        self.first, self.last = nn.Linear(*first), nn.Linear(*last)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class FromFunction(nn.Module):
    """Named parts and a function (module, inputs) of them: modules, parameters, buffers
    and, by (inputs, outputs), linear layers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, tuple):
                part = nn.Linear(*part)
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x, *others):
        return self.function(self, x, *others)


CNN_INPUT = (2, 16, 17)


def edges_of(graph, target):
    """(kind, source) of all blocks into a group, by the groups' names."""
    number = next(i for i, g in enumerate(graph.groups) if g.name == target)
    return sorted(
        (b.kind, graph.groups[b.source].name)
        for b in graph.blocks
        if b.target == number
    )
