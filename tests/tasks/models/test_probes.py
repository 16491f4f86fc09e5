from math import log

import pytest
import torch

from tasks.models import graph_model
from tasks.models.probes import mean_and_std, with_log_softmax
from tests.tasks.stacks import GRAPHS, far, fitted, moved_stack, siren_stack


def test_features_of_outputs_are_values_and_log_softmax():
    features = with_log_softmax(torch.tensor([[[0.0, log(3.0)], [1.0, 1.0]]]))
    first = [0.0, 1.0, log(1 / 4), log(1 / 2)]
    second = [log(3.0), 1.0, log(3 / 4), log(1 / 2)]
    torch.testing.assert_close(features, torch.tensor([[first, second]]))


def test_the_log_softmax_of_one_output_is_zero():
    values = torch.randn(2, 3, 1)
    assert torch.equal(with_log_softmax(values), mean_and_std(values))


def test_features_of_neurons_in_space_are_mean_and_deviation():
    values = torch.tensor([1.0, 3.0, 0.0, 0.0]).view(1, 1, 2, 2)
    assert mean_and_std(values).tolist() == [[[2.0, 1.0], [0.0, 0.0]]]


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_probe_features_do_not_depend_on_the_order_of_neurons(name, stack):
    model = fitted(name, stack, probes=3)
    same = model(moved_stack(stack))
    torch.testing.assert_close(same, model(stack), rtol=0, atol=1e-12)
    for parameter in model.probes.inputs.parameters():
        parameter.add_(torch.randn_like(parameter))
    assert far(model(stack), fitted(name, stack, probes=3)(stack))


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_the_output_head_adds_its_result_on_all_outputs(name, stack):
    model = fitted(name, stack, probes=3, output_head_layers=1)
    alone = fitted(name, stack, probes=3)
    alone.load_state_dict(model.state_dict(), strict=False)
    outputs = stack.architecture.outputs(stack.params, model.probes.inputs())
    features = torch.cat([outputs, outputs.log_softmax(-1)], 1)
    added = model.output_head(features.mT.flatten(1))
    assert far(added[0], added[1])
    torch.testing.assert_close(model(stack), alone(stack) + added)
    torch.testing.assert_close(model(moved_stack(stack)), model(stack))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_output_head_may_be_trained_alone_at_first(name, stack, monkeypatch):
    monkeypatch.setattr(graph_model, "COMPILED_EDGES_PER_CALL", 1)
    sizes = {"probes": 3, "output_head_layers": 1, "output_head_first": 0.5}
    model = fitted(name, stack, **sizes)
    alone = model.output_head(model.probes(stack).outputs.flatten(1))
    # the result of the first head is 0 initially
    torch.testing.assert_close(model(stack), alone)
    model.train()
    assert model.set_progress(0.0) == model.set_progress(0.49)
    for predictions in (model(stack), model.forward_mixed([stack, stack])[:4]):
        torch.testing.assert_close(predictions, alone)
    predictions.square().sum().backward()
    assert all(p.grad is None for p in model.network.parameters())
    assert len(model.chunks(stack)) == 1
    assert all(p.grad.any() for p in model.probes.inputs.parameters())
    assert model.set_progress(0.0) != model.set_progress(0.5) == model.set_progress(1.0)
    assert len(model.chunks(stack)) > 1
    model(stack).square().sum().backward()
    assert any(p.grad is not None for p in model.network.parameters())
    assert all(p.grad.any() for p in model.head[-1][-1].parameters())


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"probes": 3, "output_head_first": 0.5},
            "first: expected output_head_layers; got",
        ),
        ({"output_head_first": -0.1}, "below 1; got -0.1"),
        ({"output_head_first": 1.0}, "below 1; got 1.0"),
        ({"output_head_layers": 1}, "output_head_layers: expected probes"),
    ],
)
def test_settings_of_the_output_head_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        fitted("ng-gnn", siren_stack(2, 5, 1), **sizes)


def test_the_output_head_needs_outputs_of_one_size():
    stacks = siren_stack(2, 5, 1), siren_stack(2, 5, 2)
    with pytest.raises(ValueError, match="the same number of outputs; got several"):
        fitted("ng-gnn", *stacks, probes=3, output_head_layers=1)
