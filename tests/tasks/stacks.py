"""Stacks of small networks that the tests share."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from ngopt import build_graph
from tasks.learning.catalogue import MODELS
from tasks.learning.task import NetworkTask
from tasks.models.base import NetworkModel
from tasks.networks.architectures import Architecture, NetworkStack, architecture_of
from tasks.networks.input_network import InputNetwork
from tasks.networks.siren import Siren
from tasks.shards import Networks, read_shard, shard_paths
from tests.equivariance import permute, random_permutations

GRAPHS = ("ng-gnn", "ng-t", "gmn")


class SmallCNN(InputNetwork):
    """Kernels of two sizes, a layer without biases, a mean over space."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, (2, 1))
        self.second = nn.Conv2d(3, 2, (1, 2), bias=False)
        self.last = nn.Linear(2, 2)

    def example_input(self) -> Tensor:
        return torch.zeros(1, 1, 5, 6)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        first = self.first(x).relu()
        second = self.second(first).relu()
        return [x, first, second, self.last(second.mean((2, 3)))]


def architecture_of_module(module: InputNetwork) -> Architecture:
    """That of a module which no description makes."""
    return Architecture(
        {"kind": "test"}, module, build_graph(module, module.example_input())
    )


@cache
def cnn_architecture() -> Architecture:
    return architecture_of_module(SmallCNN())


def siren_architecture(*widths: int) -> Architecture:
    return architecture_of({"kind": "siren", "widths": list(widths)})


def siren_networks(*widths: int, count: int, **columns: Tensor) -> Networks:
    """Newly initialised SIRENs."""
    params, _ = stack_module_state([Siren(widths) for _ in range(count)])
    params = {name: value.detach() for name, value in params.items()}
    return Networks({"kind": "siren", "widths": list(widths)}, params, columns)


def random_stack(
    architecture: Architecture, count: int = 4, seed: int = 0
) -> NetworkStack:
    """Networks of random parameters, float64, of another mean and scale in every
    tensor."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for k, spec in enumerate(architecture.graph.parameters):
        shape = count, *spec.shape
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        values.append(0.1 * (k + (1 + k) * normal))
    return NetworkStack(architecture, values)


def siren_stack(*widths: int, count: int = 4) -> NetworkStack:
    return random_stack(siren_architecture(*widths), count)


def moved(
    stack: NetworkStack, values: Sequence[Tensor], roles: Sequence[str] = ("hidden",)
) -> list[Tensor]:
    """Per-parameter values (*batch, *shape), neurons of some roles in another order."""
    graph = stack.architecture.graph
    generator = torch.Generator().manual_seed(0)
    order = random_permutations(graph, generator, roles=tuple(roles))
    batch = values[0].shape[: values[0].dim() - len(graph.parameters[0].shape)]
    flat = [v.flatten(0, len(batch) - 1) for v in values]
    rows = zip(*flat, strict=True)
    networks = [permute(graph, list(params), order) for params in rows]
    return [torch.stack(v).unflatten(0, batch) for v in zip(*networks, strict=True)]


def moved_stack(
    stack: NetworkStack, roles: Sequence[str] = ("hidden",)
) -> NetworkStack:
    return stack._replace(params=moved(stack, stack.params, roles))


def fitted(
    name: str, *stacks: NetworkStack, d_out: int = 3, edits: bool = False, **sizes: Any
) -> NetworkModel:
    """A model of such networks, float64, from the same seed at every call."""
    torch.manual_seed(0)
    model = MODELS[name]
    architectures = [stack.architecture for stack in stacks]
    built = model(architectures, d_out, model.Config(**sizes), edits).double()
    built.fit(stacks)
    return built.eval()


def far(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-6)


def losses_of(task: NetworkTask, steps: int) -> list[float]:
    """The losses of the first steps, each from a seed, before an evaluation."""
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        losses.append(task.loss(step).item())
    task.model.eval()
    with torch.no_grad():
        task.score()
    return losses


def assert_missing_shard_is_made_again(
    make: Callable[[], None], folder: str, kept: str, missing: str
) -> None:
    """As it was; `kept` is not written again."""
    before = contents_of(folder)
    time = Path(folder, kept).stat().st_mtime_ns
    Path(folder, missing).unlink()
    make()
    assert contents_of(folder) == before
    assert Path(folder, kept).stat().st_mtime_ns == time


def outputs_of(networks: Networks, inputs: Tensor) -> Tensor:
    stack = NetworkStack.from_networks(networks)
    return stack.architecture.outputs(stack.params, inputs)


def contents_of(folder: str) -> dict[tuple[str, int], dict[str, list]]:
    """Tensors of all shards, by file and number of the group."""
    return {
        (path.name, number): {
            key: value.tolist()
            for key, value in {**networks.params, **networks.columns}.items()
        }
        for path in shard_paths(Path(folder))
        for number, networks in enumerate(read_shard(path))
    }
