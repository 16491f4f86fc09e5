"""Settings, groups and state dicts of `ngopt.BlockwiseOptimizer`."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import ngopt
from ngopt import BlockwiseOptimizer
from tests.ngopt.audit.test_audit import TOKENS
from tests.ngopt.blockwise.decoder import blockwise, decoder, hidden_of, train


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


def test_a_saved_state_continues_to_the_bit():
    model = decoder()
    optimizer = blockwise(model, heads=1)
    train(model, optimizer, range(5))
    state_dict = saved(optimizer.state_dict())
    resumed = copy.deepcopy(model)
    other = blockwise(resumed, heads=1)
    other.load_state_dict(state_dict)
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    pickled, pickled_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    expected = train(model, optimizer, range(5, 10))
    assert train(resumed, other, range(5, 10)) == expected
    assert train(copied, copied_optimizer, range(5, 10)) == expected
    assert train(pickled, pickled_optimizer, range(5, 10)) == expected


def test_a_state_of_other_matrices_is_an_error_that_changes_nothing():
    model = decoder()
    by_head = blockwise(model, heads=1)
    train(model, by_head, range(2))
    optimizer = blockwise(model)
    train(model, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    state_dict = by_head.state_dict()
    with pytest.raises(ValueError, match="heads: expected None; the state was .* 1"):
        optimizer.load_state_dict(state_dict)
    del state_dict["blockwise"]  # as torch.distributed.checkpoint does
    with pytest.raises(ValueError, match=r"'blocks.0.qkv.weight': expected one of 3"):
        optimizer.load_state_dict(state_dict)
    state_dict = optimizer.state_dict()
    state_dict["param_groups"] = state_dict["param_groups"][1:]
    with pytest.raises(ValueError, match="expected groups of"):
        optimizer.load_state_dict(state_dict)
    assert str(before) == str(optimizer.state_dict())


class WithCount(torch.optim.SGD):
    """Has a mode in its groups, and stores a number beside them, as others do."""

    count = 0

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr, momentum=0.9)
        for group in self.param_groups:
            group["is_training"] = False

    def train(self) -> None:
        for group in self.param_groups:
            group["is_training"] = True

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        assert all(group["is_training"] for group in self.param_groups)
        self.count += 1
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        super().load_state_dict(state_dict)


def test_an_optimizer_keeps_its_settings_and_what_it_stores():
    model = decoder()
    optimizer = BlockwiseOptimizer(model, TOKENS, WithCount, {"lr": 0.1})
    inner: Any = optimizer.inner
    inner.train()
    train(model, optimizer, range(2))
    inner.param_groups[0]["lr"] = 0.0
    before = [p.clone() for p in hidden_of(model)]
    train(model, optimizer, range(1))
    assert all(map(torch.equal, before, hidden_of(model)))
    assert optimizer.param_groups[0]["lr"] == 0
    other = BlockwiseOptimizer(decoder(), TOKENS, WithCount, {"lr": 0.1})
    other.load_state_dict(saved(optimizer.state_dict()))
    loaded: Any = other.inner
    assert loaded.count == 3 and other.param_groups[0]["lr"] == 0


def test_state_of_another_type_is_loaded_before_the_first_step():
    model = decoder()
    optimizer = blockwise(model)
    train(model, optimizer, range(2))
    moved = copy.deepcopy(model).float()
    other = blockwise(moved)
    moved.double()
    moved.load_state_dict(model.state_dict())
    other.load_state_dict(saved(optimizer.state_dict()))
    assert train(moved, other, range(2, 4)) == train(model, optimizer, range(2, 4))


def test_states_of_distributed_checkpoints():
    model = decoder()
    optimizer = blockwise(model)
    train(model, optimizer, range(2))
    for options in (
        StateDictOptions(full_state_dict=True),
        StateDictOptions(flatten_optimizer_state_dict=True),
    ):
        other_model = copy.deepcopy(model)
        other = blockwise(other_model)
        state_dict = get_optimizer_state_dict(model, optimizer, options=options)
        set_optimizer_state_dict(other_model, other, state_dict, options=options)
        expected = copy.deepcopy((model, optimizer))
        assert train(other_model, other, range(2, 4)) == train(*expected, range(2, 4))


def test_frozen_parameters_are_added_later():
    model = decoder()
    model.blocks[0].requires_grad_(False)
    optimizer = blockwise(model)
    train(model, optimizer, range(2))
    model.blocks[0].requires_grad_(True)
    params = list(model.blocks[0].parameters())
    optimizer.add_param_group({"params": params, "lr": 1e-4})
    added = [
        (g["role"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups[5:]
    ]
    assert added == [("matrix", 1e-4, 0), ("norm", 1e-4, 0), ("bias", 1e-4, 0)]
    assert ngopt.audit(optimizer, model, TOKENS).is_right
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(1))
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match=r"'blocks.0.norm.weight': .* group already"):
        optimizer.add_param_group({"params": params})
    with pytest.raises(ValueError, match=r"of the model; got shape \(2, 2\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
    with pytest.raises(TypeError, match="got a set"):
        optimizer.add_param_group({"params": set(params)})
    assert len(optimizer.param_groups) == 8


def test_momentum_is_cycled_where_there_is_one():
    model = decoder()
    optimizer = blockwise(model)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=10)
    train(model, optimizer, range(1))
    assert optimizer.inner is not None
    assert optimizer.inner.param_groups[0]["momentum"] == 0.95
