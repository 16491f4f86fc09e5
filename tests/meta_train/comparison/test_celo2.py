"""Celo2 with its published weights.

The port of Belilovsky-Lab is compared where it is installed:
`pip install git+https://github.com/Belilovsky-Lab/pylo` (commit d05c6c1 or newer).
"""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from meta_train.comparison.celo2 import WEIGHTS, Celo2WithAdam
from meta_train.comparison.optimizers import load_optimizer

SHAPES = (12, 7), (7, 12), (8, 8), (16, 4, 3, 3), (3, 5, 6), (9,), (20, 6)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(0.1 * torch.randn(shape)) for shape in SHAPES]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step % 3 - 1)


@pytest.mark.parametrize("orthogonalize", [True, False])
def test_it_equals_the_published_port(orthogonalize):
    published = pytest.importorskip("pylo.optim.CELO2_naive")
    network = published.CELO2MLP()
    weights = load_file(WEIGHTS)
    for i, weight in enumerate(network.w0):
        weight.data.copy_(weights[f"w0.{i}"])
    network.b0.data.copy_(weights["b0"])
    for i in range(2):
        network.dense_w[i].data.copy_(weights[f"dense_w.{i}"])
        network.dense_b[i].data.copy_(weights[f"dense_b.{i}"])
    theirs, ours = parameters(), parameters()
    groups = [{"params": theirs[:-1]}, {"params": theirs[-1:], "is_embedding": True}]
    settings = {"orthogonalize": orthogonalize, "network": network, "hf_key": None}
    expected = published.CELO2_naive(groups, lr=0.01, **settings)
    optimizer = Celo2WithAdam(ours, 0.01, ours[-1:], orthogonalize)
    for step in range(10):
        set_gradients(theirs, step)
        set_gradients(ours, step)
        expected.step()
        optimizer.step()
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-6)


def test_there_are_347_weights():
    assert sum(weight.numel() for weight in load_file(WEIGHTS).values()) == 347


def test_updates_of_matrices_have_unit_size_and_vectors_are_adams():
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = Celo2WithAdam(params, 0.01, params[-1:])
    set_gradients(params, 0)
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        size = (p - old).square().mean().sqrt()
        assert size.item() == pytest.approx(0.01, rel=1e-3)
    vectors = [(p - old).abs() for p, old in zip(params[-2:], before[-2:], strict=True)]
    for change in vectors:  # the first step of Adam
        torch.testing.assert_close(
            change, torch.full_like(change, 0.01), rtol=1e-3, atol=0
        )


def test_bfloat16_parameters_have_updates_of_float32():
    exact = parameters()
    rounded = [nn.Parameter(p.detach().bfloat16()) for p in exact]
    for p, q in zip(exact, rounded, strict=True):
        p.data.copy_(q)
    for params in (exact, rounded):
        set_gradients(exact, 0)
        for p, like in zip(params, exact, strict=True):
            p.grad = like.grad.bfloat16().to(p.dtype)
        Celo2WithAdam(params, 0.01).step()
    for p, q in zip(exact, rounded, strict=True):
        torch.testing.assert_close(q, p.bfloat16(), rtol=0.01, atol=1e-4)


def test_a_saved_state_continues_to_the_bit():
    params = parameters()
    optimizer = Celo2WithAdam(params, 0.01)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = Celo2WithAdam(copies, 0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for these, one in ((params, optimizer), (copies, resumed)):
            set_gradients(these, step)
            one.step()
    assert all(map(torch.equal, params, copies))


@pytest.mark.parametrize("name", ["celo2", "celo2-base"])
def test_it_trains_as_a_compared_optimizer(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.Flatten(), nn.Linear(24, 16), nn.Tanh()
    )
    model.append(nn.Linear(16, 3))
    tokens = torch.randint(9, (64, 3))
    spec = load_optimizer(name)
    optimizer, scheduler = spec.build(model, 0.01, 60)
    assert scheduler is not None
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens.sum(1) % 3)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
