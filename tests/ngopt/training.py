"""Short training runs that the tests of the optimizer share."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from tests.networks import CNN_INPUT, cnn

WEIGHTS = ("default", "ff", "ng-gnn")
both_copies = pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)


def batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, *CNN_INPUT, generator=generator).to(dtype)
    return inputs, torch.randint(3, (6,), generator=generator)


def train(model, opt, seeds, dtype=torch.float32):
    for seed in seeds:
        inputs, labels = batch(seed, dtype)
        opt.zero_grad()
        F.cross_entropy(model(inputs).float(), labels).backward()
        opt.step()


def step_with_noise(opt, params, seeds):
    """Steps with random gradients, which are elsewhere in memory every time."""
    gradients = []  # kept, so that no memory is used again
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
            gradients.append(p.grad)
        opt.step()


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return cnn().to(dtype)


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


def same(model, values):
    return all(
        torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True)
    )
