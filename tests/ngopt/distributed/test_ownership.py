from ngopt.distributed.ownership import (
    Cost,
    by_rows,
    cost_of,
    has_free_rows,
    layout_of_rows,
    owners_of,
    place_of_rows,
)
from ngopt.roles.buckets import Axis, MatrixLayout
from ngopt.shard_layout import Piece


def test_work_and_memory_are_divided():
    costs = [Cost(8, 1)] * 4 + [Cost(1, 8)] * 4 + [Cost(1, 1)] * 8
    owners = owners_of(costs, 4, [None] * len(costs))
    for rank in range(4):
        shares = zip(costs, owners, strict=True)
        of_rank = [cost for cost, owner in shares if owner == rank]
        assert sum(cost.work for cost in of_rank) == 11
        assert sum(cost.memory for cost in of_rank) == 11


def test_an_owner_of_state_stays_its_owner():
    owners = owners_of([Cost(1, 1)] * 6, 3, [2, None, 2, None, 2, None])
    assert owners[::2] == [2, 2, 2]
    assert 2 not in owners[1::2]


def test_more_processes_than_parameters():
    assert sorted(owners_of([Cost(1, 1), Cost(2, 2)], 4, [None, None])) == [0, 1]


def test_a_cost_counts_factors_and_moments():
    axes = Axis("rows", 1, 4, 6), Axis("channels", 1, 6, 4)
    cost = cost_of([MatrixLayout((2, 4, 6, 1), axes)], every=10)
    assert cost.memory == 2 * 48 + 2 * 2 * (16 + 36)
    assert cost.work == 20 * 48 + 4 * 48 * 10 + 7 * 2 * (64 + 216) / 10


def test_rows_belong_to_the_rank_that_holds_them():
    """Of two that hold the same rows, each has half."""
    upper, lower = Piece((0, 0), (3, 2)), Piece((3, 0), (2, 2))
    owned = by_rows([upper, lower, upper, lower, Piece((0, 0), (0, 0))])
    assert owned.first == 0
    assert owned.is_divided
    assert owned.domains == (
        Piece((0, 0), (2, 2)),
        Piece((3, 0), (1, 2)),
        Piece((2, 0), (1, 2)),
        Piece((4, 0), (1, 2)),
        Piece((0, 0), (0, 0)),
    )


def test_tables_and_vectors_have_free_rows():
    channels, rows = Axis("channels", 1, 4, 9), Axis("rows", 1, 9, 4)
    table = MatrixLayout((1, 9, 4, 1), (channels,), part=(9, 4))
    vectors = MatrixLayout((1, 1, 36, 1), part=(9, 4))
    assert has_free_rows([table])
    assert has_free_rows([table]) and has_free_rows([vectors])
    for axes in ((rows,), (rows, channels)):
        assert not has_free_rows([MatrixLayout((1, 9, 4, 1), axes, part=(9, 4))])
    assert not has_free_rows([table, table])
    piece, axes = Piece((2, 0), (5, 4)), (Axis("channels", 1, 4, 5),)
    assert layout_of_rows(table, piece) == MatrixLayout((1, 5, 4, 1), axes, part=(5, 4))
    assert layout_of_rows(vectors, piece) == MatrixLayout((1, 1, 20, 1), part=(5, 4))
    assert place_of_rows(table, piece) == Piece((0, 2, 0, 0), (1, 5, 4, 1))
    assert place_of_rows(vectors, piece) == Piece((0, 0, 8, 0), (1, 1, 20, 1))
