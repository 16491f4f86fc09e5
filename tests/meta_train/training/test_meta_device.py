"""Estimators on torch's meta device, where a value that the host reads raises an error,
and so does an op of tensors on two devices: what runs there waits for no GPU."""

from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meta_train.training.estimators import PES, TBPTT, SecondOrderTBPTT
from meta_train.training.train import placed
from meta_train.training.unroll import Optimizee, Stack, stacked, unstacked
from ngopt.metanets import METANETS
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.closed_form import Regression
from tests.metanets import metanet_for
from tests.selection import quick_first

ESTIMATORS = {
    "tbptt": TBPTT(tail=0.5, total_steps=7),
    "tbptt-2": SecondOrderTBPTT(total_steps=7),
    "pes": PES(total_steps=7),
    "es": PES(persistent=False, total_steps=7),
}
META = torch.device("meta")
# Estimators are tested with a metanet that reads no graph and with one that
# does; all other metanets run under vmap, which lets the host read no more, with and
# without derivatives.
OTHERS = sorted({*METANETS} - {"ff", "ng-gnn"})
ALWAYS = [
    *product(("ff",), ESTIMATORS, (1, 2)),
    *(("ng-gnn", "tbptt", 1), ("ng-gnn", "tbptt-2", 2), ("ng-gnn", "es", 1)),
    *product(OTHERS, ("tbptt-2",), (2,)),
]
CASES = [
    *product(("ff", "ng-gnn"), ESTIMATORS, (1, 2)),
    *product(OTHERS, ("tbptt-2", "pes"), (2,)),
]


class Copies(TorchDispatchMode):
    """Counts copies from the host to the meta device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
        out = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            self.count += out.is_meta and any(x.is_cpu for x in inputs)
        return out


def on_meta(name, count):
    torch.manual_seed(0)
    seeds = range(count)
    optimizees = [Optimizee(Regression(), seed=seed, device=META) for seed in seeds]
    metanet = metanet_for(name, optimizees[0].graph)
    if name == "ng-gnn":
        metanet = metanet.reconfigured(graph_every=2).double()
    cooldown = Cooldown(1.5, 0.6)
    learned = LearnedOptimizer(metanet.to(META), cooldown=cooldown)
    return optimizees, learned


@pytest.mark.parametrize(("name", "estimator", "count"), quick_first(CASES, ALWAYS))
def test_nothing_is_read(name, estimator, count):
    """Alone and stacked."""
    optimizees, learned = on_meta(name, count)
    own = ESTIMATORS[estimator]
    states = [own.start(optimizee, learned) for optimizee in optimizees]
    optimizee = optimizees[0] if count == 1 else Stack(optimizees)
    state = states[0] if count == 1 else stacked(states)
    copies = []
    for steps in (1, 3):
        with Copies() as found:
            estimate, state = own.estimate(optimizee, learned, state, steps)
        copies.append(found.count)
    if count > 1:
        estimate, state = unstacked((estimate, state), count)[0]
    assert all(values.is_meta for values in estimate)
    numel = sum(p.numel() for p in learned.metanet.parameters())
    assert estimate.meta_gradient.shape == (numel,)
    # of each step a batch: inputs and targets
    trainings = 2 if isinstance(own, PES) else 1
    assert copies[1] - copies[0] <= 4 * trainings


def test_what_is_on_the_host_stays_there():
    state = {"values": torch.zeros(2, device=META), "step": torch.tensor(3)}
    found = placed((state, 7), META)
    assert found[0]["values"].is_meta
    assert found[0]["step"].is_cpu
    assert found[1] == 7
