"""R, the largest learning rate: in checkpoints, of groups added later, as a tensor."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo import lookup_backend
from torch.distributed.checkpoint import state_dict as dcp

from ngopt import NGOptimizer
from tests.ngopt.learning_rates import (
    NEVER,
    STEPS,
    assert_close,
    follow,
    gradients,
    made,
    network,
    rates_of,
    reference,
    weights_of,
    write,
)

HALF = range(6), range(6, STEPS)
FALLING = 1e-3 * (1 - np.arange(STEPS) / STEPS) ** 4


def by_state_dict(model, opt, copy, other):
    other.load_state_dict(opt.state_dict())


def by_distributed_checkpoint(model, opt, copy, other, flat=False):
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    state = dcp.get_optimizer_state_dict(model, opt, options=options)
    dcp.get_optimizer_state_dict(copy, other, options=options)  # initializes the state
    dcp.set_optimizer_state_dict(copy, other, state, options=options)


class TestCheckpoints:
    @pytest.mark.parametrize(
        "load",
        [
            by_state_dict,
            by_distributed_checkpoint,
            partial(by_distributed_checkpoint, flat=True),
        ],
    )
    @pytest.mark.parametrize("rates", [None, FALLING])
    @pytest.mark.parametrize("lr", [1e-5, 1.0, None])
    def test_the_lr_of_a_new_constructor_does_not_count(self, load, rates, lr):
        """And a schedule of a loop stays one."""
        model, copy = network(), network()
        opt = NGOptimizer(model.parameters(), lr=1e-3)
        follow(model, opt, rates, steps=HALF[0])
        copy.load_state_dict(model.state_dict())
        other = NGOptimizer(copy.parameters(), lr=lr)
        load(model, opt, copy, other)
        weights = follow(model, opt, rates, steps=HALF[1])
        assert torch.equal(follow(copy, other, rates, steps=HALF[1]), weights)

    def test_a_finder_that_restores_the_state_changes_no_step(self):
        model = network()
        opt = NGOptimizer(model.parameters(), lr=1e-3)
        values, state = network().state_dict(), opt.state_dict()
        follow(model, opt, 1e-7 * 5.0 ** np.arange(STEPS))
        model.load_state_dict(values)
        opt.load_state_dict(state)
        assert_close(follow(model, opt), reference([1.0] * STEPS, NEVER))

    def test_groups_have_scale_and_reference(self):
        model = network()
        opt = NGOptimizer(model.parameters(), lr=3e-4, scale=2.0)
        opt.param_groups[0]["lr"] = np.float64(1e-3)
        follow(model, opt, steps=range(1))
        (group,) = opt.state_dict()["param_groups"]
        assert (group["scale"], group["reference_lr"]) == (2.0, 1e-3)
        assert type(group["reference_lr"]) is float  # others need weights_only=False

    def test_one_before_the_first_step_changes_no_step(self):
        model = network()
        opt = NGOptimizer(model.parameters(), lr=3e-4)
        dcp.get_optimizer_state_dict(model, opt)
        assert_close(follow(model, opt), reference([1.0] * STEPS, NEVER))


class TestSeveral:
    @pytest.mark.parametrize(("lr", "factors"), [(1e-4, (1, 0.1)), (1e-2, (0.1, 1))])
    def test_a_group_that_is_added_later_shares_the_largest_rate(self, lr, factors):
        weights = []
        for rates, scales in (((1e-3, lr), (1, 1)), ((1.0, 1.0), factors)):
            model = network()
            opt = NGOptimizer(model[2].parameters(), lr=rates[0])
            follow(model, opt, steps=HALF[0])
            opt.add_param_group({"params": model[0].parameters(), "lr": rates[1]})
            write(opt, "scale", scales)
            weights.append(follow(model, opt, steps=HALF[1]))
        assert_close(*weights)

    def test_an_added_group_far_below_the_default_warns(self):
        model = network()
        opt = NGOptimizer(model[2].parameters())
        with pytest.warns(UserWarning, match=r"multiplied by 0.0003. Pass the lr"):
            opt.add_param_group({"params": model[0].parameters(), "lr": 3e-4})
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    def test_two_optimizers_each_begin_at_1(self):
        weights = []
        for rates in ((1e-4, 4e-4), (1.0, 1.0)):
            model = network()
            first, second = (
                NGOptimizer(layer.parameters(), lr=lr)
                for layer, lr in zip((model[0], model[2]), rates, strict=True)
            )
            first.register_step_post_hook(lambda *_, second=second: second.step())
            weights.append(follow(model, first))
        assert torch.equal(*weights)


class OnDevice(torch.Tensor):
    """A number that counts as one on an accelerator, where reading is a host sync."""

    is_cpu = False

    def _read(self, *_):
        raise AssertionError("a rate was read")

    item = tolist = numpy = __float__ = __bool__ = _read


class TestTensors:
    @pytest.mark.parametrize("kind", [torch.Tensor, OnDevice])
    @pytest.mark.parametrize("largest", [1e-3, 4e-3])
    def test_they_equal_floats_and_are_not_read_on_a_device(self, kind, largest):
        lr = torch.tensor(1e-3, dtype=torch.float64).as_subclass(kind)
        model, weights = network(), []
        opt = NGOptimizer(model.parameters(), lr=lr)
        opt.param_groups[0]["initial_lr"] = lr.new_tensor(largest)
        for t in range(STEPS):
            lr.fill_(FALLING[t])
            weights.append(follow(model, opt, steps=[t]))
        assert_close(torch.cat(weights), reference(FALLING / largest))

    def test_a_larger_one_on_a_device_is_the_reference_from_then_on(self):
        lr = torch.tensor(0.0, dtype=torch.float64).as_subclass(OnDevice)
        model, weights = network(), []
        opt = NGOptimizer(model.parameters(), lr=lr)
        rates = np.array([1, 2, 3, 4, 3, 2, 1, 5, 5, 0, 1, 6])
        for t in range(STEPS):
            lr.fill_(rates[t])
            weights.append(follow(model, opt, steps=[t]))
        factors = rates / np.maximum.accumulate(rates)
        assert_close(torch.cat(weights), reference(factors, NEVER))

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

    @pytest.mark.slow
    def test_a_compiled_step_is_not_compiled_again_for_a_tensor(self):
        torch.compiler.reset()
        model, counts, graphs = network(), [], []

        def backend(module, inputs):
            graphs.append(module)
            return lookup_backend("aot_eager")(module, inputs)

        lr = torch.tensor(1e-3, dtype=torch.float64)
        opt = NGOptimizer(model.parameters(), lr=lr, rule="ff")
        cosine = made("CosineAnnealingLR", STEPS)
        scheduler, step = cosine(opt), torch.compile(opt.step, backend=backend)
        for t in range(5):
            gradients(model, t)
            (step if t else opt.step)()
            scheduler.step()
            counts.append(len(graphs))
        assert 0 < counts[4] == counts[2]
        expected = reference(rates_of(cosine, 1e-3) / 1e-3, rule="ff")[4]
        assert_close(weights_of(model), expected)
