import torch

from ngopt.graph.groups_and_blocks import View
from ngopt.roles.buckets import (
    BUCKET_ELEMENTS,
    Axis,
    Bucket,
    BucketEntry,
    MatrixLayout,
    arranged,
)

CPU, META = torch.device("cpu"), torch.device("meta")


def matrix(groups, rows, columns):
    axes = Axis("rows", 1, rows, columns), Axis("channels", 1, columns, rows)
    return MatrixLayout((groups, rows, columns, 1), axes)


def vector(size):
    return MatrixLayout((1, 1, size, 1))

    def bucket(self):
        sizes = matrix(1, 4, 6), matrix(1, 4, 6), matrix(2, 3, 3), vector(5), vector(1)
        return Bucket([BucketEntry(i, 0, x) for i, x in enumerate(sizes)], CPU)

    def test_numbers_of_parameters_are_spread_over_their_rows(self):
        bucket = self.bucket()
        entries = bucket.entries
        values = [torch.full(e.layout.shape, float(e.parameter)) for e in entries]
        values = bucket.pieces.join(values)
        first, second = bucket.spread(torch.tensor([[0.0, 1, 2, 3, 4], [1.0] * 5]))
        assert first.shape == (len(values), 1)
        assert torch.equal(values, torch.where(values > 0, first, 0))
        assert torch.equal(second, torch.ones_like(first))

    def test_matrices_of_one_layout_are_one_stack(self):
        bucket = self.bucket()
        stacks = [[entry.parameter for entry in stack] for stack in bucket.stacks]
        assert stacks == [[0, 1], [2], [3, 4]]
        values = [torch.randn(entry.layout.shape) for entry in bucket.entries]
        stacked = bucket.stacked.split(bucket.pieces.join(values))
        assert torch.equal(stacked[0], torch.cat(values[:2])[..., 0])
        assert torch.equal(stacked[1], values[2][..., 0])
        assert torch.equal(stacked[2].flatten()[:5], values[3].flatten())

    def test_values_of_parts_of_a_parameter(self):
        """Two layouts, of every second row."""
        views = [View(0, (1, 2, 3), (0, 6, 1), offset) for offset in (0, 3)]
        layouts = [MatrixLayout((1, 2, 3, 1), (), view) for view in views]
        bucket = Bucket([BucketEntry(0, i, x) for i, x in enumerate(layouts)], CPU)
        p = torch.arange(12.0).view(4, 3)
        first, second = bucket.pieces.split(bucket.gather([p]))
        assert torch.equal(first[0, :, :, 0], p[::2])
        assert torch.equal(second[0, :, :, 0], p[1::2])


class TestBuckets:
    def test_hold_everything_once_with_equal_layouts_together(self):
        sizes = matrix(1, 4, 6), vector(3), matrix(1, 2, 2)
        layouts = [*sizes, matrix(1, 4, 6), vector(9)]
        entries = [BucketEntry(i, 0, x) for i, x in enumerate(layouts)]
        (entries,) = arranged(entries, CPU)
        bucket = Bucket(entries, CPU)
        assert sorted(entry.parameter for entry in bucket.entries) == [0, 1, 2, 3, 4]
        assert sorted(len(stack) for stack in bucket.stacks) == [1, 2, 2]
        assert not bucket.entries[-1].layout.axes

    def test_have_a_largest_size(self):
        sizes = [1 << 23, 1 << 23, 1 << 26, 1 << 23, 1 << 23, 1 << 23]
        entries = [BucketEntry(i, 0, matrix(1, 4, n // 4)) for i, n in enumerate(sizes)]
        buckets = arranged(entries, META)
        found = [sum(entry.numel for entry in bucket) for bucket in buckets]
        assert sum(found) == sum(sizes)
        assert [n for n in found if n > BUCKET_ELEMENTS["accelerator"]] == [1 << 26]
        assert len(found) == 3
