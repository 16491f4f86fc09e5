from math import log

import pytest
import torch

from tasks.models import graph_model
from tasks.models.probes import mean_and_std, with_log_softmax
from tests.tasks.stacks import (
    GRAPHS,
    far,
    fitted,
    moved_stack,
    siren_stack,
)


def test_outputs_say_themselves_and_what_a_classifier_answers():
    values = torch.tensor([[[0.0, log(3.0)], [1.0, 1.0]]])
    found = with_log_softmax(values)
    expected = [
        [0.0, 1.0, log(1 / 4), log(1 / 2)],
        [log(3.0), 1.0, log(3 / 4), log(1 / 2)],
    ]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_one_output_has_nothing_beside_it():
    values = torch.randn(2, 3, 1)
    assert torch.equal(with_log_softmax(values), mean_and_std(values))


def test_neurons_in_space_say_mean_and_deviation():
    values = torch.tensor([1.0, 3.0, 0.0, 0.0]).view(1, 1, 2, 2)
    expected = [[2.0, 1.0], [0.0, 0.0]]
    assert mean_and_std(values).tolist() == [expected]


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_what_networks_say_of_probes_does_not_tell_the_order_of_neurons(name, stack):
    model = fitted(name, stack, probes=3)
    torch.testing.assert_close(
        model(moved_stack(stack)), model(stack), rtol=0, atol=1e-12
    )
    for parameter in model.probes.inputs.parameters():
        parameter.add_(torch.randn_like(parameter))
    assert far(model(stack), fitted(name, stack, probes=3)(stack))


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_a_second_head_adds_what_it_reads_in_the_answers_of_all_outputs(name, stack):
    model = fitted(name, stack, probes=3, output_head_layers=1)
    alone = fitted(name, stack, probes=3)
    alone.load_state_dict(model.state_dict(), strict=False)
    inputs = model.probes.inputs()
    outputs = stack.architecture.outputs(stack.params, inputs)
    both = torch.cat([outputs, outputs.log_softmax(-1)], 1)
    added = model.output_head(both.mT.flatten(1))
    assert far(added[0], added[1])
    torch.testing.assert_close(model(stack), alone(stack) + added)
    torch.testing.assert_close(model(moved_stack(stack)), model(stack))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_second_head_may_learn_alone_at_first(name, stack, monkeypatch):
    monkeypatch.setattr(graph_model, "COMPILED_EDGES_PER_CALL", 1)
    sizes = {"probes": 3, "output_head_layers": 1, "output_head_first": 0.5}
    model = fitted(name, stack, **sizes)
    answers = model.probes(stack).outputs
    alone = model.output_head(answers.flatten(1))
    # the graph's begins at 0
    torch.testing.assert_close(model(stack), alone)
    model.train()
    assert model.set_progress(0.0) == model.set_progress(0.49)
    for said in (model(stack), model.forward_mixed([stack, stack])[:4]):
        torch.testing.assert_close(said, alone)
    said.square().sum().backward()
    assert all(p.grad is None for p in model.network.parameters())
    assert len(model.chunks(stack)) == 1
    assert all(p.grad.any() for p in model.probes.inputs.parameters())
    assert model.set_progress(0.0) != model.set_progress(0.5) == model.set_progress(1.0)
    assert len(model.chunks(stack)) > 1
    model(stack).square().sum().backward()
    assert any(p.grad is not None for p in model.network.parameters())
    assert all(p.grad.any() for p in model.head[-1][-1].parameters())


def test_a_second_head_that_learns_alone_is_checked(stack):
    with pytest.raises(ValueError, match="first: expected output_head_layers; got"):
        fitted("ng-gnn", stack, probes=3, output_head_first=0.5)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"below 1; got {share}"):
            fitted("ng-gnn", stack, output_head_first=share)


def test_a_second_head_needs_answers_of_one_size():
    stacks = siren_stack(2, 5, 1), siren_stack(2, 5, 2)
    with pytest.raises(ValueError, match="output_head_layers: expected probes"):
        fitted("ng-gnn", stacks[0], output_head_layers=1)
    with pytest.raises(ValueError, match="the same number of outputs; got several"):
        fitted("ng-gnn", *stacks, probes=3, output_head_layers=1)
