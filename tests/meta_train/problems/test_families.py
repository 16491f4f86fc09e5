"""Every seed of a family is another problem."""

import pytest
import torch
from torch import nn

from meta_train.problems import LISTS, PROBLEMS
from meta_train.problems.catalogue import CnnFamily
from tests.meta_train.small import available

FAMILIES = [
    name for name in LISTS["meta-training"] if isinstance(PROBLEMS[name], CnnFamily)
]


@pytest.fixture(params=FAMILIES)
def family(request):
    return available(request.param)


def test_seeds_have_different_networks_and_batch_sizes(family):
    shapes, sizes = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        model = family.init(seed)
        again = family.init(seed)
        for p, q in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(p, q)
        shapes.add(tuple(p.shape for p in model.parameters()))
        inputs, _ = family.batch(seed, 3)
        assert torch.equal(inputs, family.batch(seed, 3)[0])
        sizes.add(inputs.shape)
    assert len(shapes) > 25
    assert {shape[0] for shape in sizes} == {32, 64, 128, 256}
    assert {shape[-1] for shape in sizes} == {14, 28}


def test_networks_of_seeds_have_gradients_and_are_evaluated(family):
    for seed in range(4):
        model = family.init(seed)
        family.loss(model, family.batch(seed, 0)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert family.evaluate(model.eval(), "validation", 40).loss > 0
        widths = [m.out_channels for m in model if isinstance(m, nn.Conv2d)]
        assert 2 <= len(widths) <= 4
        assert 6 <= min(widths) <= max(widths) <= 32
