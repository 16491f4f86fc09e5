"""Networks as graph networks read them: graphs, initial weights and first gradients.

They are cached beside the outcomes, in one byte an element: weights of the first seed,
in sizes of PyTorch's initial weights, and gradients in the RMS of their tensor.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from meta_train.step_size.trainings import Training, first_gradients
from ngopt import build_graph
from ngopt.graph import NeuralGraph
from ngopt.learned_step.features import inverse_init_rms, matrices_of
from ngopt.pretrained.tensor_files import atomic_write
from ngopt.roles.from_graph import roles_of

FILE = "graph_inputs.pt"
GRAPHS = "parameters", "traced"
SEED = 0
LEVELS = 20.0  # of asinh, for one unit
MIN_SIZE = 1e-4  # size of a tensor
COLUMNS, COLUMNS_OF_WEIGHTS = 4, 2  # features of elements
SAVED = 200  # networks after which the cache is written


class GraphInput(NamedTuple):
    """A network before its first step.

    graphs: of `GRAPHS`. weights, gradients: codes of all elements, (numel,) int8.
    sizes: logs of the RMS of both for every tensor, relative to PyTorch's and to all
    gradients, (tensors, 2).
    """

    graphs: tuple[NeuralGraph, NeuralGraph]
    weights: Tensor
    gradients: Tensor
    sizes: Tensor

    def columns(self) -> Tensor:
        """Features of all elements, (numel, 4): two of weights, two of gradients."""
        numels = [spec.numel for spec in self.graphs[0].parameters]
        repeats = torch.tensor(numels)
        sizes = self.sizes.repeat_interleave(repeats, 0)
        weights = self.weights / LEVELS
        gradients = self.gradients / LEVELS
        return torch.stack([weights, sizes[:, 0], gradients, sizes[:, 1]], 1)


def read_inputs(trainings: Sequence[Training], path: Path) -> list[GraphInput]:
    """The networks of trainings, from a cache to which new ones are added."""
    known = {}
    if path.exists():  # a pickle: load your own alone
        for seed, own in torch.load(path, weights_only=False).items():
            known[seed] = GraphInput(*own)
    wanted = [training for training in trainings if training.seed not in known]
    for number, training in enumerate(tqdm(wanted, "graphs", disable=not wanted)):
        known[training.seed] = graph_input(training)
        if (number + 1) % SAVED == 0:
            save_inputs(path, known)
    if wanted:
        save_inputs(path, known)
    return [known[training.seed] for training in trainings]


def save_inputs(path: Path, inputs: dict[int, GraphInput]) -> None:
    with atomic_write(path) as part:
        torch.save({seed: tuple(own) for seed, own in inputs.items()}, part)


def graph_input(training: Training) -> GraphInput:
    """The network of a training with its first seed."""
    model, grads = first_gradients(training, SEED)
    example = training.task.inputs[training.indices(SEED, 0)[:2]]
    graphs = build_graph(model.named_parameters()), build_graph(model, example)
    return input_of(graphs, list(model.parameters()), grads)


@torch.no_grad()
def input_of(
    graphs: tuple[NeuralGraph, NeuralGraph],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> GraphInput:
    """graphs: of `GRAPHS`. params, grads: of the network, in the order of both."""
    for graph in graphs:
        assert [spec.numel for spec in graph.parameters] == [p.numel() for p in params]
    relative = list(_relative_weights(graphs[0], params))
    weight_sizes = torch.stack([_rms(x) for x in relative])
    gradients = [grad.nan_to_num(0.0, 0.0, 0.0) for grad in grads]
    gradient_sizes = torch.stack([_rms(grad) for grad in gradients])
    whole = _rms(torch.cat([grad.flatten() for grad in gradients]))
    unit = []
    for grad, size in zip(gradients, gradient_sizes, strict=True):
        unit.append(grad / size.clamp(min=1e-30))
    sizes = torch.stack([weight_sizes, gradient_sizes / whole.clamp(min=1e-30)], 1)
    logs = sizes.nan_to_num(0.0).clamp(MIN_SIZE, 1 / MIN_SIZE).log()
    return GraphInput(graphs, _codes(relative), _codes(unit), logs)


def _relative_weights(graph: NeuralGraph, params: Sequence[Tensor]) -> Iterator[Tensor]:
    """Parameters, matrices of them in sizes of PyTorch's."""
    roles = roles_of(graph)
    matrices = matrices_of(roles)
    inverse = inverse_init_rms(roles, matrices)
    factors = dict(zip(matrices, inverse, strict=True))
    for number, p in enumerate(params):
        yield p * factors.get(number, 1.0)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _codes(tensors: Sequence[Tensor]) -> Tensor:
    flat = torch.cat([x.flatten() for x in tensors])
    codes = (flat.asinh() * LEVELS).round()
    return codes.clamp(-127, 127).to(torch.int8)
