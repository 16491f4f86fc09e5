"""Learning rates that are tensors: equal to floats, and not read on a device."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ngopt import NGOptimizer
from tests.ngopt.optimizer.test_learning_rates import (
    FASTER,
    NEVER,
    SCHEDULERS,
    STEPS,
    assert_close,
    follow,
    gradients,
    network,
    rates_of,
    reference,
    weights_of,
)


class OnDevice(torch.Tensor):
    """A number that counts as one on an accelerator, where reading is a host sync."""

    is_cpu = False

    def _read(self, *_):
        raise AssertionError("a rate was read")

    item = tolist = numpy = __float__ = __bool__ = _read


HIGHER = np.array([1, 2, 3, 4, 3, 2, 1, 5, 5, 0, 1, 6])


class TestTensors:
    @pytest.mark.parametrize(
        ("kind", "initial", "rates", "factors"),
        [
            *((x, 1e-3, FASTER, FASTER / 1e-3) for x in (torch.Tensor, OnDevice)),
            *((x, 4e-3, FASTER, FASTER / 4e-3) for x in (torch.Tensor, OnDevice)),
            (OnDevice, None, HIGHER, HIGHER / np.maximum.accumulate(HIGHER)),
        ],
    )
    def test_they_equal_floats_and_are_not_read_on_a_device(
        self, kind, initial, rates, factors
    ):
        lr = torch.tensor(1e-3 if initial else 0.0, dtype=torch.float64).as_subclass(
            kind
        )
        model, weights = network(), []
        opt = NGOptimizer(model.parameters(), lr=lr)
        if initial is not None:
            opt.param_groups[0]["initial_lr"] = lr.new_tensor(initial)
        for t in range(STEPS):
            lr.fill_(rates[t])
            weights.append(follow(model, opt, steps=[t]))
        expected = reference(factors, NEVER if initial is None else 0)
        assert_close(torch.cat(weights), expected)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_tensor_on_a_device_is_changed_in_place(self, device):
        """device: where a checkpoint was loaded to."""
        with torch.device("meta"):
            model = nn.Linear(3, 4)
        opt = NGOptimizer(model.parameters(), lr=torch.tensor(1e-3, device="meta"))
        opt.param_groups[0]["reference_lr"] = torch.tensor(1e-3, device=device)
        largest = []
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.empty_like(p)
            opt.step()
            largest.append(opt.param_groups[0]["reference_lr"])
        assert largest[0].is_meta and largest[0] is largest[1] is largest[2]

    @pytest.mark.thorough
    def test_a_compiled_step_is_not_compiled_again_for_a_tensor(self):
        torch.compiler.reset()
        model, counts = network(), []
        backend = CompileCounterWithBackend("aot_eager")
        lr = torch.tensor(1e-3, dtype=torch.float64)
        opt = NGOptimizer(model.parameters(), lr=lr, rule="ff")
        cosine = SCHEDULERS["CosineAnnealingLR"]
        scheduler, step = cosine(opt), torch.compile(opt.step, backend=backend)
        for t in range(5):
            gradients(model, t)
            (step if t else opt.step)()
            scheduler.step()
            counts.append(backend.frame_count)
        assert 0 < counts[4] == counts[2]
        expected = reference(rates_of(cosine, 1e-3) / 1e-3, rule="ff")[4]
        assert_close(weights_of(model), expected)
