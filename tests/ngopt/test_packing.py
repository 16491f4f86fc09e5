import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ngopt import packing
from ngopt.packing import (
    PackedState,
    Packing,
    PaddedRows,
    _copied,
    clone_views,
    flatten,
    scalar_packing,
)


class TestPaddedRows:
    shapes = [(2, 3, 5, 1), (1, 1, 0, 1), (1, 4, 4, 1), (3, 1, 1, 1)]  # noqa: RUF012

    def test_each_matrix_begins_with_a_row(self):
        pieces = PaddedRows(self.shapes, 8)
        assert pieces.rows == [4, 0, 2, 3]
        assert [value.gap for value in pieces._values] == [1, 0, 0, 7]
        values = [torch.randn(shape) for shape in self.shapes]
        bucket = pieces.join(values)
        assert bucket.shape == (9, 8)
        assert torch.equal(bucket[2], values[0][1].flatten()[:8])
        assert bucket[1, 7] == bucket[3, 7] == 0
        assert not bucket[6:, 1:].any()

    @pytest.mark.parametrize("lanes", [1, 8, 16])
    def test_split_inverts_join_with_views(self, lanes):
        pieces = PaddedRows(self.shapes, lanes)
        values = [torch.randn(shape) for shape in self.shapes]
        bucket = pieces.join(values)
        found = pieces.split(bucket)
        for x, y in zip(found, values, strict=True):
            assert torch.equal(x, y)
        found[0].zero_()
        assert not bucket[: pieces.rows[0]].any()

    def test_one_that_needs_no_gap_is_no_copy(self):
        x = torch.randn(1, 4, 4, 1)
        assert PaddedRows([x.shape], 8).join([x]).data_ptr() == x.data_ptr()

    def test_matrices_in_other_memory_orders(self):
        shapes = [(1, 4, 6, 1)] * 3 + [(1, 2, 2, 1)]
        values = [torch.randn(1, 6, 4, 1).transpose(1, 2) for _ in range(3)]
        values.append(torch.randn(1, 2, 2, 1))
        for lanes in (4, 32):
            pieces = PaddedRows(shapes, lanes)
            for x, y in zip(pieces.split(pieces.join(values)), values, strict=True):
                assert torch.equal(x, y)


class TestPackedState:
    def state(self):
        pieces = PaddedRows([(1, 2, 2), (1, 3)], 1)
        values = Packing([(0, "a"), (1, "a")], pieces.join, pieces.split)
        records = [
            {"a": torch.ones(1, 2, 2), "step": torch.tensor(1.0)},
            {"a": torch.zeros(1, 3), "step": torch.tensor(2.0)},
        ]
        return PackedState(
            [values, scalar_packing(2, ["step"], torch.device("cpu"))]
        ), records

    def test_in_place_records_come_to_hold_views(self):
        state, records = self.state()
        values, steps = state.open(records, in_place=True)
        assert steps.tolist() == [[1, 2]]
        values.fill_(5)
        steps.add_(1)
        assert (records[1]["a"] == 5).all()
        assert records[0]["step"] == 2
        assert state.open(records, in_place=True)[0] is values
        records[0]["step"] = torch.tensor(9.0)
        assert state.open(records, in_place=True)[1].tolist() == [[9, 3]]

    def test_a_tensor_is_replaced(self):
        state, records = self.state()
        state.open(records, in_place=True)
        steps = torch.tensor([[7.0, 8.0]])
        state.replace(records, 1, steps)
        steps.add_(1)
        assert records[1]["step"] == 9
        assert state.open(records, in_place=True)[1] is steps

    def test_views_that_leave_get_memory_of_their_own(self):
        state, records = self.state()
        values, _ = state.open(records, in_place=True)
        clone_views(records[:1])
        values.zero_()
        assert (records[0]["a"] == 1).all()
        assert records[0]["a"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_scalars_are_copied_to_their_device(device, capturing, monkeypatch):
    """ZeroRedundancyOptimizer loads all on the host. A CUDA graph copies none."""
    monkeypatch.setattr(packing, "is_capturing", lambda _: capturing)
    own = scalar_packing(2, ["a"], torch.device(device))
    with FakeTensorMode():
        for other in ("cpu", "cuda:0"):
            values = [torch.zeros((), device=other) for _ in range(2)]
            assert str(own.join(values).device) == (other if capturing else device)


def test_flat_values_are_those_of_cat():
    values = [torch.randn(3, 2), torch.randn(()), torch.randn(4), torch.randn(0, 2)]
    expected = torch.cat([x.reshape(-1) for x in values])
    assert torch.equal(flatten(values), expected)
    assert torch.equal(_copied(values), expected)
    mixed = [values[0].bfloat16(), values[2]]
    found = flatten(mixed)
    assert found.dtype == torch.float32
    assert torch.equal(found[6:], values[2])
