"""All models: shapes, symmetries, errors, and that they learn."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from ngopt import build_graph
from tasks.learning.catalogue import MODELS
from tasks.models import graph_model
from tasks.models.graph_model import largest_kernel
from tasks.models.value_features import ValueFeatures
from tasks.networks.siren import Siren
from tests.tasks.stacks import (
    GRAPHS,
    architecture_of_module,
    cnn_architecture,
    far,
    fitted,
    moved,
    moved_stack,
    random_stack,
    siren_stack,
)

CHAINS = ("nfn-np", "nfn-hnp", "dwsnet")
TIED = ("mlp", *CHAINS)
EDITORS = (*TIED, *GRAPHS)
UNTIED = ("statnn", "set", "dmc", "probegen", *GRAPHS)
NOT_INVARIANT = ("mlp", "dmc")  # to permutations
INVARIANT = tuple(name for name in MODELS if name not in NOT_INVARIANT)
EXACT = {"rtol": 0, "atol": 1e-12}


def test_names():
    assert set(MODELS) == {*TIED, *UNTIED}
    assert all(model.name == name for name, model in MODELS.items())
    assert {name for name, model in MODELS.items() if model.can_edit} == set(EDITORS)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_predictions_of_a_reader_do_not_depend_on_other_networks(name, stack):
    model = fitted(name, stack)
    predictions = model(stack)
    assert predictions.shape == (stack.count, 3)
    assert far(predictions[0], predictions[1])
    torch.testing.assert_close(model(stack.select(slice(1, 2))), predictions[1:2])


@torch.no_grad()
@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("d_out", [1, 2])
def test_an_editor_has_updates_of_the_shapes_of_the_parameters(name, d_out, stack):
    updates = fitted(name, stack, d_out=d_out, edits=True).updates(stack)
    expected = [(4, d_out, *spec.shape) for spec in stack.architecture.graph.parameters]
    assert [update.shape for update in updates] == expected
    assert all(far(update[0], update[1]) for update in updates)


@torch.no_grad()
@pytest.mark.parametrize("name", INVARIANT)
def test_predictions_do_not_depend_on_the_order_of_hidden_neurons(name, stack):
    model = fitted(name, stack)
    torch.testing.assert_close(model(moved_stack(stack)), model(stack), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("name", NOT_INVARIANT)
def test_models_without_symmetry_depend_on_the_order_of_hidden_neurons(name, stack):
    model = fitted(name, stack)
    assert far(model(moved_stack(stack)), model(stack))


@torch.no_grad()
@pytest.mark.parametrize("name", [*CHAINS, *GRAPHS])
def test_updates_are_equivariant_to_permutations_of_hidden_neurons(name, stack):
    model = fitted(name, stack, d_out=2, edits=True)
    plain = model.updates(stack)
    expected = moved(stack, plain)
    assert any(map(far, expected, plain))
    torch.testing.assert_close(model.updates(moved_stack(stack)), expected, **EXACT)


@torch.no_grad()
def test_updates_of_an_mlp_are_not_equivariant(stack):
    model = fitted("mlp", stack, edits=True)
    expected = moved(stack, model.updates(stack))
    assert any(map(far, model.updates(moved_stack(stack)), expected))


@torch.no_grad()
@pytest.mark.parametrize("role", ["input", "output"])
def test_only_np_is_invariant_to_permutations_of_inputs_and_outputs(role):
    stack = siren_stack(2, 5, 4, 3)
    other = moved_stack(stack, [role])
    same = fitted("nfn-np", stack)
    torch.testing.assert_close(same(other), same(stack), **EXACT)
    for name in ("nfn-hnp", "dwsnet", "probegen", *GRAPHS):
        model = fitted(name, stack)
        assert far(model(other), model(stack)), name


@torch.no_grad()
def test_updates_of_np_are_equivariant_to_permutations_of_inputs_and_outputs(stack):
    roles = ("input", "hidden", "output")
    model = fitted("nfn-np", stack, d_out=2, edits=True)
    updates = model.updates(moved_stack(stack, roles))
    expected = moved(stack, model.updates(stack), roles)
    torch.testing.assert_close(updates, expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_only_set_models_do_not_depend_on_the_order_of_elements(name):
    stack = siren_stack(2, 5, 4, 2)
    params = list(stack.params)
    order = torch.randperm(params[2][0].numel())
    params[2] = params[2].flatten(1)[:, order].unflatten(1, params[2].shape[1:])
    model = fitted(name, stack)
    is_same = not far(model(stack._replace(params=params)), model(stack))
    assert is_same == (name in ("statnn", "set"))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_only_probegen_is_invariant_to_the_sign_of_sine_neurons(name):
    """A sine neuron that is negated, with its outgoing weights, changes no output."""
    stack = siren_stack(2, 5, 4, 2)
    params = [p.clone() for p in stack.params]
    for value in (params[0][:, 1], params[1][:, 1], params[2][:, :, 1]):
        value.neg_()
    model = fitted(name, stack)
    is_same = not far(model(stack._replace(params=params)), model(stack))
    assert is_same == (name == "probegen")


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if name != "probegen"])
def test_units_of_parameters_do_not_matter(name, stack):
    expected = fitted(name, stack)(stack)
    other = stack._replace(params=[3 * value - 1 for value in stack.params])
    torch.testing.assert_close(fitted(name, other)(other), expected)


@pytest.mark.parametrize("name", MODELS)
def test_readers_learn(name, stack):
    model = fitted(name, stack, d_out=1).train()
    target = torch.randn(stack.count, 1, dtype=torch.float64)
    before, after = a_step(model, lambda: mse_loss(model(stack), target))
    assert after < before


@pytest.mark.parametrize("name", EDITORS)
def test_editors_learn(name, stack):
    model = fitted(name, stack, d_out=1, edits=True).train()

    def loss():
        pairs = zip(model.updates(stack), stack.params, strict=True)
        return sum(mse_loss(update[:, 0], -value) for update, value in pairs)

    before, after = a_step(model, loss)
    assert after < before


def a_step(model, loss):
    """The loss before and after a short step down a gradient that all parameters have.

    All but some of a gmn: in a parameter graph biases are edges, and nodes are not
    decoded.
    """

    def drawn():
        torch.manual_seed(0)  # of dropout
        return loss()

    before = drawn()
    parameters = list(model.parameters())
    is_gmn = model.name == "gmn"
    grads = torch.autograd.grad(
        before, parameters, allow_unused=is_gmn, materialize_grads=is_gmn
    )
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter -= 1e-4 * grad / norm
    return before, drawn()


@torch.no_grad()
@pytest.mark.parametrize("name", UNTIED)
def test_untied_models_read_networks_of_several_architectures(name):
    stacks = siren_stack(2, 5, 4, 1), siren_stack(2, 7, 1), siren_stack(2, 6, 1)
    model = fitted(name, *stacks[:2])
    assert [model(stack).shape for stack in stacks] == [(4, 3)] * 3


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_chunks_of_a_stack_have_the_same_predictions(name, stack, monkeypatch):
    model = fitted(name, stack)
    edges = model.parts(stack.architecture).edges
    monkeypatch.setattr(graph_model, "COMPILED_EDGES_PER_CALL", 2 * edges)
    pieces = model.chunks(stack)
    assert {piece.count for piece in pieces} <= {1, 2}
    predictions = torch.cat([model(piece) for piece in pieces])
    torch.testing.assert_close(predictions, model(stack))


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 200, 10**6])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, {}) for name in UNTIED),
        ("ng-gnn", {"scales": True, "probes": 3}),
        ("ng-t", {"probes": 3}),
        ("gmn", {"probes": 3}),
        ("gmn", {"probes": 3, "output_head_layers": 2}),
    ],
)
def test_predictions_of_a_mixture_equal_those_of_each_architecture(
    name, sizes, at_once, monkeypatch
):
    """Whether all are read in one call, or one network after the other."""
    monkeypatch.setattr(graph_model, "EDGES_PER_CALL", at_once)
    stacks = siren_stack(2, 5, 4, 1), siren_stack(2, 7, 1), siren_stack(2, 5, 1)
    model = fitted(name, *stacks, **sizes)
    predictions = torch.cat([model(stack) for stack in stacks])
    torch.testing.assert_close(model.forward_mixed(stacks), predictions)


@torch.no_grad()
def test_a_gmn_depends_on_positions_in_a_kernel():
    stack = random_stack(cnn_architecture())
    params = [p.flip(-2, -1) if p.dim() == 5 else p for p in stack.params]
    model = fitted("gmn", stack)
    assert far(model(stack._replace(params=params)), model(stack))


def test_the_largest_kernel_is_bounded():
    def graph(*kernels):
        layers = [nn.Conv2d(1, 1, kernel) for kernel in kernels]
        return build_graph(nn.Sequential(*layers), torch.zeros(1, 1, 32, 32))

    assert largest_kernel([graph(1)]) == (3, 3)
    assert largest_kernel([graph(3, 1), graph((1, 5))]) == (5, 5)
    assert largest_kernel([graph(16)]) == (7, 7)


@pytest.mark.parametrize("name", TIED)
def test_tied_models_refuse_other_parameters(name):
    stack = siren_stack(2, 5, 4, 1)
    other = siren_stack(2, 6, 4, 1)
    message = rf"{name}: is tied .* layers.0.weight \(5, 2\).*; got .* \(6, 2\)"
    with pytest.raises(ValueError, match=message):
        fitted(name, stack, other)
    with pytest.raises(ValueError, match=message):
        fitted(name, stack)(other)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in EDITORS])
def test_readers_cannot_be_editors(name):
    message = f"{name}: reads networks, but cannot edit them"
    with pytest.raises(ValueError, match=message):
        fitted(name, siren_stack(2, 5, 1), edits=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_needs_an_architecture(name):
    message = f"{name}: expected the architectures of its networks"
    with pytest.raises(ValueError, match=message):
        fitted(name)


@cache
def other_architecture(module):
    return architecture_of_module(module((2, 4, 4, 1)))


class Tanh(Siren):
    def group_activations(self, x):
        *hidden, last = self.layers
        activations = [x]
        for layer in hidden:
            activations.append(layer(activations[-1]).tanh())
        return [*activations, last(activations[-1])]


@pytest.mark.parametrize("name", TIED)
def test_tied_models_read_networks_with_other_activations(name):
    sines = siren_stack(2, 4, 4, 1)
    other = other_architecture(Tanh)
    model = fitted(name, sines, random_stack(other))
    assert torch.equal(model(sines), model(sines._replace(architecture=other)))


class Skip(Siren):
    """Its first layer of sines is added to its second."""

    def group_activations(self, x):
        first = torch.sin(self.layers[0](x))
        second = torch.sin(self.layers[1](first)) + first
        return [x, first, second, self.layers[2](second)]


@pytest.mark.parametrize("name", CHAINS)
def test_other_graphs_than_chains_are_refused(name):
    skip = random_stack(other_architecture(Skip))
    message = f"{name}: expected networks that are plain chains"
    with pytest.raises(ValueError, match=message):
        fitted(name, skip)


@pytest.mark.parametrize("name", TIED)
def test_tied_models_refuse_other_connections_of_the_same_parameters(name):
    plain = siren_stack(2, 4, 4, 1)
    skip = plain._replace(architecture=other_architecture(Skip))
    message = f"{name}: is tied .* expected the same connections"
    with pytest.raises(ValueError, match=message):
        fitted(name, plain)(skip)


@pytest.mark.parametrize("name", ["nfn-hnp", "dwsnet"])
def test_hnp_needs_hidden_neurons(name):
    message = f"{name}: expected networks with hidden neurons"
    with pytest.raises(ValueError, match=message):
        fitted(name, siren_stack(2, 1))


def test_the_scale_of_values_is_a_separate_feature():
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 1e3, 1e-2]).view(3, 1, 1)
    features = ValueFeatures(frequencies=2, bandwidth=1.0, scales=True)
    relative, logarithms = features.prepare(values).unbind(-1)
    scaled, larger = features.prepare(factors * values).unbind(-1)
    torch.testing.assert_close(scaled, relative)
    torch.testing.assert_close(larger - logarithms, factors.log().expand_as(values))
    torch.testing.assert_close(relative.square().mean((1, 2)), torch.ones(3))
    assert features.prepare(torch.zeros(2, 3)).isfinite().all()
