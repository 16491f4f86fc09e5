"""Steps that write with `out=`, as on accelerators, equal those on a CPU."""

import copy

import pytest
import torch

from benchmarks.shapes import TINY_WORKLOADS
from ngopt import NGOptimizer
from ngopt.accelerator.soap import AcceleratedUpdate
from ngopt.roles.buckets import Axis
from ngopt.soap.soap import SoapRule
from tests.ngopt.training import step_with_noise

STEPS = 12


@pytest.mark.parametrize("network", ["tiny GPT", "tiny CNN"])
def test_steps_are_equal(network, monkeypatch):
    torch.manual_seed(0)
    model = TINY_WORKLOADS[network].make().double()
    expected = trained(copy.deepcopy(model))
    monkeypatch.setattr(SoapRule, "make_update", AcceleratedUpdate)
    written = []
    plain = Axis.rotate

    def counted(self, x, basis, back, out):
        written.append(out is not None)
        return plain(self, x, basis, back, out)

    monkeypatch.setattr(Axis, "rotate", counted)
    torch.testing.assert_close(trained(model), expected, rtol=1e-10, atol=1e-12)
    assert sum(written) == (3 * STEPS * 6 if network == "tiny GPT" else 0)


def trained(model):
    params = list(model.parameters())
    opt = NGOptimizer(params, total_steps=100)
    step_with_noise(opt, params, range(STEPS))
    return params
