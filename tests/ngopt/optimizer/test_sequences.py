"""Random sequences of what users do with an optimizer."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ngopt import NGOptimizer
from ngopt.optimizer.param_groups import group_tensors
from tests.ngopt.training import same, snapshot


class Training:
    """A small network, its optimizer, and what may be done with them."""

    def __init__(self, is_traced: bool, total_steps: int | None):
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5)
        self.model, self.added = nn.Sequential(*layers), []
        self.settings = {"total_steps": total_steps}
        self.opt = self.made(is_traced)

    def made(self, is_traced=False):
        model = self.model if is_traced else None
        return NGOptimizer(self.model.named_parameters(), model=model, **self.settings)

    def backward(self):
        self.opt.zero_grad()
        loss = self.model(torch.randn(3, 4)).square().sum()
        for p in self.added:
            loss = loss + p.square().sum()
        loss.backward()

    def step(self):
        self.backward()
        self.opt.step()

    def nan(self):
        """A gradient that is not finite changes nothing but what decays."""
        self.backward()
        for p in group_tensors(self.opt.param_groups):
            if p.grad is not None:
                p.grad.fill_(torch.nan)
        self.opt.step()

    def add_group(self):
        self.added.append(nn.Parameter(torch.randn(3, 2)))
        name = f"added.{len(self.added)}"
        self.opt.add_param_group({"params": [(name, self.added[-1])], "lr_scale": 0.5})

    def freeze(self):
        p = self.model[0].weight
        p.requires_grad_(not p.requires_grad)

    def save_and_load(self):
        """Into another optimizer of copies; both then make the same step."""
        groups = []
        for group in self.opt.param_groups:
            copies = map(copied, group["params"])
            groups.append({"params": [*zip(group["param_names"], copies, strict=True)]})
        other = NGOptimizer(groups, **self.settings)
        other.load_state_dict(copy.deepcopy(self.opt.state_dict()))
        self.same_step(other)

    def same_step(self, other):
        self.backward()
        params = group_tensors(self.opt.param_groups)
        others = group_tensors(other.param_groups)
        for p, q in zip(params, others, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        self.opt.step()
        other.step()
        assert all(map(torch.equal, params, others))

    def deepcopy(self):
        self.same_step(copy.deepcopy(self.opt))

    def pickle(self):
        self.same_step(pickle.loads(pickle.dumps(self.opt)))

    def change_lr(self):
        for group in self.opt.param_groups:
            group["lr"] = group["lr"] * 0.5 + 0.25

    def foreign_key(self):
        for record in self.opt.state.values():
            record["slow_buffer"] = torch.ones(7)

    def resize(self):
        p = self.model[3].bias
        before = p.data
        p.data = torch.zeros(9)
        p.grad = torch.ones(9)
        kept = snapshot(self.model)
        if self.opt.state.get(p):
            with pytest.raises(ValueError, match="expected shape"):
                self.opt.step()
        assert same(self.model, kept)
        p.grad = None
        p.data = before

    def trace(self):
        self.opt, self.added = self.made(is_traced=True), []


def copied(p):
    return nn.Parameter(p.detach().clone(), p.requires_grad)


ACTIONS = [name for name in vars(Training) if not name.startswith("_")]
ACTIONS = [name for name in ACTIONS if name not in ("made", "backward", "same_step")]


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.thorough)])
def test_random_sequences_of_actions(count):
    check = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()


@given(
    st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from([None, 5, 1000]),
)
def run(actions, is_traced, total_steps):
    training = Training(is_traced, total_steps)
    for action in [*actions, "step"]:
        getattr(training, action)()
        assert all(p.isfinite().all() for p in training.model.parameters())
    records = training.opt.state.values()
    assert all(v.isfinite().all() for record in records for v in record.values())
