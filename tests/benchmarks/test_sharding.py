"""Steps of several ranks, counted in one process."""

import json
from functools import partial

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks import sharding
from benchmarks.shapes import Llama
from benchmarks.sharding import ALONE, DDP, FSDP, Collectives, DeviceCounts, Group
from ngopt.roles.buckets import Bucket
from ngopt.shard_layout import Piece

TINY = partial(Llama, 64, 16, 2, 24, 2)
COUNT, VECTORS = 21, 5 * 16  # parameters, and elements of vectors
MATRICES = 2 * 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24)


def sums_over_ranks(size, numbers=2):
    """Bytes that all ranks send for some float32 numbers of every parameter."""
    return 2 * (size - 1) * numbers * COUNT * 4


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("division", [FSDP, DDP])
def test_bytes_and_state_of_all_ranks(division, size):
    group = Group(TINY, division, size)
    ranks = [group.steps(rank) for rank in range(size)]
    alone = Group(TINY, ALONE, 1).steps(0)
    assert sum(rank.state for rank in ranks) == alone.state
    assert max(rank.state for rank in ranks) < 1.5 * alone.state / size
    expected = sums_over_ranks(size, numbers=5)  # `SUMS`
    if division == FSDP:  # gradients and changes of matrices, but the owner's rows
        expected += 2 * 4 * MATRICES * (size - 1) // size + 2 * sums_over_ranks(size)
    else:
        expected += 4 * (MATRICES + VECTORS) * (size - 1)  # changes to all others
    assert {*alone.collectives, *alone.sent, *alone.received} == {0}
    assert all(min(rank.collectives) > 0 for rank in ranks)
    for sent in zip(*(rank.sent for rank in ranks), strict=True):
        assert sum(sent) == expected
    for received in zip(*(rank.received for rank in ranks), strict=True):
        assert sum(received) == expected


def test_no_rank_makes_buckets_of_the_whole_network(monkeypatch):
    """A bucket needs memory for all of its elements."""
    numels = []
    init = Bucket.__init__

    def counted(self, entries, device):
        numels.append(sum(entry.numel for entry in entries))
        init(self, entries, device)

    monkeypatch.setattr(Bucket, "__init__", counted)
    size = 4
    for rank in range(size):
        numels.clear()
        Group(TINY, FSDP, size).steps(rank)
        # matrices that it owns, and parts that it holds
        assert 0 < sum(numels) < 3 * (MATRICES + VECTORS) / size


def test_owners_of_a_table_have_its_factor_each():
    make = partial(Llama, 1000, 16, 2, 24, 1)
    ranks = [Group(make, FSDP, 2).steps(rank) for rank in range(2)]
    alone = Group(make, ALONE, 1).steps(0)
    factor = 4 * 16 * 16
    copies = sum(rank.state for rank in ranks) - alone.state
    assert copies % (2 * factor) == 0  # with their eigenbases
    assert copies > 0
    matrices = 4 * 16 * 16 + 3 * 16 * 24
    # what is summed up, and matrices, but no rows of the table
    assert sum(rank.sent[0] for rank in ranks) < 4 * (4 * matrices + 1000 * 16)


def shapes(named):
    """Shapes of parameters, and of their parts, by name."""
    return {name: (p.shape, p.to_local().shape) for name, p in named}


@pytest.mark.parametrize("rank", [0, 2])
def test_parts_are_those_that_fully_shard_makes(rank):
    group = Group(partial(Llama, 10, 8, 2, 5, 1), FSDP, 3)
    with torch.device("meta"):
        model = Llama(10, 8, 2, 5, 1)
    with group.as_rank(rank, Collectives(rank, 3)):
        mesh = init_device_mesh("cpu", (3,), mesh_dim_names=(f"of {rank}",))
        fully_shard(model.layers[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert shapes(group.parameters(rank)) == shapes(model.named_parameters())
    assert [Piece.full((10,)).chunk(0, r, 4).numel for r in range(4)] == [3, 3, 3, 1]
    assert [Piece.full((5,)).chunk(0, r, 4).numel for r in range(4)] == [2, 2, 1, 0]


def test_uncounted_collectives_raise():
    group = Group(TINY, DDP, 2)
    raises = pytest.raises(RuntimeError, match="expected one of.*broadcast")
    with group.as_rank(0, Collectives(0, 2)), raises, DeviceCounts():
        distributed.broadcast(torch.zeros(2), 0)


def test_main(tmp_path, capsys, monkeypatch):
    cases = [("tiny", ALONE, 1), ("tiny", FSDP, 2), ("tiny", DDP, 2)]
    monkeypatch.setattr(sharding, "CASES", [sharding.Case(*case) for case in cases])
    monkeypatch.setattr(sharding, "NETWORKS", {"tiny": TINY})
    output = tmp_path / "sharding.json"
    sharding.main(["--output", str(output)])
    alone, *divided = json.loads(output.read_text())["steps"]
    assert alone["sent_mb"] == 0 and alone["kernels"] > 50
    for record in divided:
        assert record["mean_share"] == pytest.approx(1)
        assert 1 <= record["state_share"] < 1.5
        assert record["kernels"] < 2 * alone["kernels"]
    assert "state_share" in capsys.readouterr().out
