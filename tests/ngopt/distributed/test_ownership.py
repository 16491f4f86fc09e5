from ngopt.base.partition import Axis, MatrixLayout
from ngopt.distributed.ownership import Cost, cost_of, owners_of


def test_work_and_memory_are_divided():
    costs = [Cost(8, 1)] * 4 + [Cost(1, 8)] * 4 + [Cost(1, 1)] * 8
    owners = owners_of(costs, 4, [None] * len(costs))
    for rank in range(4):
        own = [cost for cost, owner in zip(costs, owners, strict=True) if owner == rank]
        assert sum(cost.work for cost in own) == 11
        assert sum(cost.memory for cost in own) == 11


def test_who_has_a_state_keeps_it():
    costs = [Cost(1, 1)] * 6
    owners = owners_of(costs, 3, [2, None, 2, None, 2, None])
    assert owners[::2] == [2, 2, 2]
    assert 2 not in owners[1::2]


def test_more_processes_than_parameters():
    assert sorted(owners_of([Cost(1, 1), Cost(2, 2)], 4, [None, None])) == [0, 1]


def test_a_cost_counts_factors_and_moments():
    axes = Axis("rows", 1, 4, 6), Axis("channels", 1, 6, 4)
    found = cost_of([MatrixLayout((2, 4, 6, 1), axes)], every=10)
    assert found.memory == 2 * 48 + 2 * 2 * (16 + 36)
    assert found.work == 20 * 48 + 4 * 48 * 10 + 7 * 2 * (64 + 216) / 10
