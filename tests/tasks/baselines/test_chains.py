"""Chains of layers as NP layers read them, and that these layers span all maps with the
symmetry."""

from itertools import permutations, product

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from tasks.baselines.chains import Chain
from tasks.baselines.nfn import NFNHNP, NFNNP, NFNConfig
from tasks.networks.architectures import NetworkStack
from tests.equivariance import permute
from tests.networks import FromFunction
from tests.tasks.stacks import (
    SmallCNN,
    architecture_of_module,
    cnn_architecture,
    random_stack,
    siren_architecture,
)


class NoOutputBias(SmallCNN):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 2, bias=False)


MAKES = {
    "siren": lambda: siren_architecture(2, 3, 2, 2),
    "deep": lambda: siren_architecture(1, 2, 2, 2, 1),
    "one hidden layer": lambda: siren_architecture(2, 3, 2),
    "cnn": cnn_architecture,
    "no bias of outputs": lambda: architecture_of_module(NoOutputBias()),
}
MODELS = {NFNNP: ("input", "hidden", "output"), NFNHNP: ("hidden",)}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("permutes_ends", [True, False])
def test_scatter_is_the_inverse_of_gather(make, permutes_ends):
    stack = random_stack(make())
    chain = Chain(stack.architecture.graph, permutes_ends)
    scattered = chain.scatter(chain.gather(stack.params), 1)
    assert all(map(torch.equal, [p.squeeze(1) for p in scattered], stack.params))
    assert len(scattered) == len(stack.params)


def test_weights_of_fixed_ends_are_features_of_hidden_neurons():
    stack = random_stack(siren_architecture(2, 5, 4, 3))
    chain = Chain(stack.architecture.graph, permutes_ends=False)
    first, first_bias, _, bias, last, last_bias = stack.params
    weights, nodes, whole = chain.gather(stack.params)
    assert [parts.number for parts in weights.blocks] == [1]
    assert torch.equal(nodes[0], torch.cat([first_bias.unsqueeze(-1), first], -1))
    assert torch.equal(nodes[1], torch.cat([bias.unsqueeze(-1), last.mT], -1))
    assert torch.equal(whole, last_bias)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_one_layer_spans_all_affine_maps_that_commute_with_permutations(model, make):
    """A group of permutations commutes with mean(fixed^2) independent maps, and leaves
    mean(fixed) independent vectors as they are; fixed counts what one of them leaves in
    place (Burnside).
    """
    architecture = make()
    counts = torch.tensor(list(fixed_elements(architecture.graph, MODELS[model])))
    expected = counts.double().square().mean() + counts.double().mean()
    layer = model([architecture], 1, NFNConfig(layers=1), edits=True).double()
    assert torch.linalg.matrix_rank(maps_of(layer, architecture), atol=1e-9) == expected


def fixed_elements(graph, roles):
    """Of every permutation of neurons with some roles, how many parameters it leaves in
    place."""
    numbers = graph.unflatten(torch.arange(graph.numel))
    places = [i for i, group in enumerate(graph.groups) if group.role in roles]
    orders = [permutations(range(graph.groups[i].size)) for i in places]
    for order in product(*orders):
        chosen = dict(zip(places, map(torch.tensor, order), strict=True))
        moved = permute(graph, numbers, chosen)
        yield int((graph.flatten(moved) == torch.arange(graph.numel)).sum())


def maps_of(editor, architecture):
    """What each number in an editor does to the networks of a single 1 and to that of
    zeros.

    (numel * (numel + 1), numbers).
    """
    graph = architecture.graph
    basis = torch.cat([torch.eye(graph.numel), torch.zeros(1, graph.numel)]).double()
    stack = NetworkStack(architecture, graph.unflatten(basis, batch_dims=1))

    wrapped = FromFunction(lambda m, stack: m.editor.updates(stack), editor=editor)

    def updates(params):
        changed = functional_call(wrapped, params, (stack,))
        return graph.flatten(changed, batch_dims=2)

    params = {f"editor.{name}": p.detach() for name, p in editor.named_parameters()}
    derivatives = jacrev(updates)(params).values()
    return torch.cat([value.flatten(0, 2).flatten(1) for value in derivatives], 1)
