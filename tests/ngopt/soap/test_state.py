import copy

import pytest
import torch

from ngopt.roles.buckets import Axis, MatrixLayout
from ngopt.soap.state import SUMS, ScalarState, StateLayout, counts_of, first_record

LAYOUTS = [
    [MatrixLayout((2, 4, 6, 1), (Axis("rows", 2, 2, 6), Axis("channels", 1, 6, 4)))],
    [MatrixLayout((1, 1, 7, 1))],
    [MatrixLayout((1, 6, 4, 1), (Axis("rows", 1, 6, 4),))],
]
SHAPES = [(8, 6), (7,), (6, 4)]


def records(dtype=torch.float32, **scalars):
    pairs = zip(SHAPES, LAYOUTS, strict=True)
    return [first_record(torch.zeros(s, dtype=dtype), x, scalars) for s, x in pairs]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_first_record(dtype):
    own = torch.float64 if dtype == torch.float64 else torch.float32
    record = records(dtype)[0]
    assert {key: tuple(x.shape) for key, x in record.items()} == {
        "step": (),
        **dict.fromkeys(ScalarState._fields, ()),
        "displacement": (2, 4, 6, 1),
        "exp_avg_0": (2, 4, 6, 1),
        "exp_avg_sq_0": (2, 4, 6, 1),
        "rows_0": (4, 2, 2),  # two parts of two groups
        "rows_basis_0": (4, 2, 2),
        "channels_0": (2, 6, 6),
        "channels_basis_0": (2, 6, 6),
    }
    assert record["exp_avg_0"].dtype == record["rows_0"].dtype == own
    assert torch.equal(record["channels_basis_0"][1], torch.eye(6, dtype=own))
    assert not record["rows_0"].any()
    assert not record["step"].is_cuda


def test_long_factors_are_kept_in_bfloat16():
    axes = Axis("rows", 1, 513, 512), Axis("channels", 1, 512, 513)
    layouts = [MatrixLayout((1, 513, 512, 1), axes)]
    p = torch.zeros(513, 512, device="meta")
    record = first_record(p, layouts, {})
    assert record["rows_0"].dtype == record["rows_basis_0"].dtype == torch.bfloat16
    assert record["channels_0"].dtype == torch.float32
    assert first_record(p.double(), layouts, {})["rows_0"].dtype == torch.float64


def stack():
    return StateLayout(LAYOUTS, torch.zeros(()))


def test_factors_of_one_size_are_one_tensor():
    own = stack()
    assert counts_of(own.keys) == {6: 3, 2: 4}
    state = own.open(records(), in_place=True)
    assert state.factors[6].shape == state.bases[6].shape == (3, 6, 6)
    numbers = own.of_factors(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert [sorted(x.flatten().tolist()) for x in numbers[6]] == [[1, 1, 3], [4, 4, 6]]
    assert [x.flatten().tolist() for x in numbers[2]] == [[1] * 4, [4] * 4]


def test_in_place_records_hold_views_that_are_made_once():
    own, held = stack(), records()
    state = own.open(held, in_place=True)
    state.momentum[own.buckets[0]].fill_(2)
    state.scalars[ScalarState._fields.index("skipped")] = 5
    state.step.add_(1)
    for record in held:
        assert (record["exp_avg_0"] == 2).all()
        assert record["skipped"] == 5
        assert record["step"] == 1
    again = own.open(held, in_place=True)
    assert again.momentum[own.buckets[0]] is state.momentum[own.buckets[0]]
    held[1]["exp_avg_0"] = torch.ones(1, 1, 7, 1)  # as after loading
    anew = own.open(held, in_place=True)
    assert anew.momentum[own.buckets[0]] is not state.momentum[own.buckets[0]]
    anew.momentum[own.buckets[0]].zero_()
    assert not held[1]["exp_avg_0"].any()


def test_functional_state_is_a_copy_until_it_is_closed():
    own, held = stack(), records()
    before = copy.deepcopy(held)
    given = [dict(record) for record in held]
    state = own.open(given, in_place=False)
    state.momentum[own.buckets[0]].fill_(2)
    state.bases[6].fill_(3)
    torch.testing.assert_close(held, before, rtol=0, atol=0)
    own.packed.close(given, state.tensors)
    assert (given[2]["exp_avg_0"] == 2).all()
    assert (given[0]["channels_basis_0"] == 3).all()
    assert not held[2]["exp_avg_0"].any()


def test_scalars_of_a_multiplier_follow_those_of_the_rule():
    layout = StateLayout(LAYOUTS, torch.zeros(()), ["factor"])
    kept = records(factor=0.5)
    state = layout.open(kept, in_place=True)
    assert state.scalars[-1].tolist() == [0.5, 0.5, 0.5]
    state.scalars[SUMS].fill_(3)
    assert kept[1]["path"] == kept[1]["distance"] == 3
    assert kept[1]["factor"] == 0.5
