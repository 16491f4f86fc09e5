"""Chains of layers as NP layers see them, and that these layers span all maps with the
symmetry."""

from itertools import permutations, product

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from tasks.baselines.chains import Chain
from tasks.baselines.equivariant import EquivariantConfig
from tasks.baselines.nfn import NFNHNP, NFNNP
from tasks.networks.architectures import NetworkStack
from tests.equivariance import permute
from tests.tasks.stacks import (
    cnn_architecture,
    random_stack,
    siren_architecture,
)

MAKES = {
    "siren": lambda: siren_architecture(2, 3, 2, 2),
    "deep": lambda: siren_architecture(1, 2, 2, 2, 1),
    "one hidden layer": lambda: siren_architecture(2, 3, 2),
    "cnn": cnn_architecture,
}
MODELS = {NFNNP: ("input", "hidden", "output"), NFNHNP: ("hidden",)}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("permutes_ends", [True, False])
def test_what_is_read_and_written_again_is_the_same(make, permutes_ends):
    stack = random_stack(make())
    chain = Chain(stack.architecture.graph, permutes_ends)
    for found, value in zip(
        chain.scatter(chain.gather(stack.params), 1), stack.params, strict=True
    ):
        assert torch.equal(found.squeeze(1), value)


def test_ends_that_stay_are_features_of_the_neurons_beside_them():
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
    layer = model([architecture], 1, EquivariantConfig(layers=1), edits=True).double()
    assert torch.linalg.matrix_rank(maps_of(layer, architecture), atol=1e-9) == expected


def fixed_elements(graph, roles):
    """Of every permutation of neurons with some roles, how many parameters it leaves in
    place."""
    numbers = graph.unflatten(torch.arange(graph.numel))
    places = [i for i, group in enumerate(graph.groups) if group.role in roles]
    orders = [permutations(range(graph.groups[i].size)) for i in places]
    for order in product(*orders):
        chosen = {i: torch.tensor(own) for i, own in zip(places, order, strict=True)}
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

    def updates(own):
        found = functional_call(Updates(editor), own, (stack,))
        return graph.flatten(found, batch_dims=2)

    own = {f"editor.{name}": p.detach() for name, p in editor.named_parameters()}
    found = jacrev(updates)(own)
    return torch.cat([value.flatten(0, 2).flatten(1) for value in found.values()], 1)


class Updates(nn.Module):
    """An editor, called for its updates."""

    def __init__(self, editor):
        super().__init__()
        self.editor = editor

    def forward(self, stack):
        return self.editor.updates(stack)
