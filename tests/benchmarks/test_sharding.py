"""Steps of several ranks, counted in one process and predicted."""

import json
from functools import partial
from math import prod

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.cost_model import LAUNCH, MEMORY
from benchmarks.shapes import Llama
from benchmarks.sharding import __main__ as sharding
from benchmarks.sharding import peers as sharded_peers
from benchmarks.sharding.peers import Parameters
from benchmarks.sharding.simulated_ranks import (
    ALONE,
    DDP,
    FSDP,
    Collectives,
    DeviceCounts,
    Group,
)
from benchmarks.sharding.timeline import BANDWIDTH, LATENCY, Log, in_turn, play
from ngopt.shard_layout import whole
from ngopt.soap.layout import Bucket

TINY = partial(Llama, 64, 16, 2, 24, 2)
COUNT, VECTORS = 21, 5 * 16  # parameters, and elements of vectors
MATRICES = 2 * 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24)


def sums_over_ranks(size):
    """Bytes that all ranks send for the numbers of every parameter, two in float32."""
    return 2 * (size - 1) * 2 * COUNT * 4


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("division", [FSDP, DDP])
def test_bytes_and_state_of_all_ranks(division, size):
    group = Group(TINY, division, size)
    ranks = [group.steps(rank) for rank in range(size)]
    alone = Group(TINY, ALONE, 1).steps(0)
    assert sum(rank.state for rank in ranks) == alone.state
    assert max(rank.state for rank in ranks) < 1.5 * alone.state / size
    expected = sums_over_ranks(size)
    if division == FSDP:  # gradients and changes of matrices, but the owner's rows
        expected += 2 * 4 * MATRICES * (size - 1) // size + 2 * sums_over_ranks(size)
    else:
        expected += 4 * (MATRICES + VECTORS) * (size - 1)  # changes to all others
    for logs in zip(*(rank.logs for rank in ranks), strict=True):
        assert sum(log.sent for log in logs) == expected
        assert sum(log.received for log in logs) == expected
        assert play(logs) > max(log.device_seconds for log in logs) > 0


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
    assert sum(rank.logs[0].sent for rank in ranks) < 4 * (4 * matrices + 1000 * 16)


def test_a_single_process_sends_nothing():
    alone = Group(TINY, ALONE, 1).steps(0)
    for log in alone.logs:
        assert (log.sent, log.received, len(log.segments)) == (0, 0, 1)
        assert play([log]) == max(log.device_seconds, LAUNCH * log.launches)
    assert alone.parts["renewal"] > 0


@pytest.mark.parametrize("rank", [0, 2])
def test_parts_are_those_that_fully_shard_makes(rank):
    group = Group(partial(Llama, 10, 8, 2, 5, 1), FSDP, 3)
    with torch.device("meta"):
        model = Llama(10, 8, 2, 5, 1)
    with group.as_rank(rank, Collectives(rank, 3)):
        mesh = init_device_mesh("cpu", (3,), mesh_dim_names=(f"of {rank}",))
        fully_shard(model.layers[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        expected = {
            name: (p.shape, p.to_local().shape) for name, p in model.named_parameters()
        }
        found = {
            name: (p.shape, p.to_local().shape) for name, p in group.parameters(rank)
        }
    assert found == expected
    assert [whole((10,)).chunk(0, r, 4).numel for r in range(4)] == [3, 3, 3, 1]
    assert [whole((5,)).chunk(0, r, 4).numel for r in range(4)] == [2, 2, 1, 0]


def test_a_collective_that_is_not_logged_is_an_error():
    group = Group(TINY, DDP, 2)
    is_refused = pytest.raises(RuntimeError, match="expected one of.*broadcast")
    with group.as_rank(0, Collectives(0, 2)), is_refused, DeviceCounts():
        distributed.broadcast(torch.zeros(2), 0)


def logged(*seconds, launches=1):
    """A collective of 300 MB travels during the second work, of three."""
    log = Log()
    log.work(seconds[0], launches)
    number = log.start(300_000_000, 1000)
    log.work(seconds[1], launches)
    log.wait(number)
    log.work(seconds[2], launches)
    log.end()
    return log


def test_ranks_wait_for_each_other():
    transfer = 300e6 / BANDWIDTH + LATENCY  # about a millisecond
    first, second = logged(0.01, 0.05, 0.02), logged(0.03, 0.01, 0.01)
    # the collective begins at .03; the first works until .06, the second waits
    assert play([first, second]) == pytest.approx(0.06 + 0.02)
    assert play([second]) == pytest.approx(0.05)
    slow = logged(0.03, 0.0, 0.04)
    assert play([slow, logged(0.0, 0.0, 0.0)]) == pytest.approx(0.07 + transfer)
    assert in_turn([first, second]) == pytest.approx(0.08 + transfer)
    # the host launches more slowly than the device computes
    late = logged(1e-6, 1e-6, 1e-6, launches=10_000)
    assert play([late]) == pytest.approx(30_001 * LAUNCH, rel=1e-3)


def test_hosts_wait_for_each_other():
    first, second = Log(), Log()
    first.work(0.0, 1000)
    for log in (first, second):
        log.on_host(4)
        log.work(0.0, 10)
        log.end()
    assert play([first, second]) == pytest.approx(1010 * LAUNCH + 3 * LATENCY)


def test_orders_of_collectives_that_differ_are_an_error():
    other = Log()
    other.end()
    with pytest.raises(ValueError, match="one order of collectives"):
        play([logged(0.0, 0.0, 0.0), other])


def test_adamw_and_muon_by_hand():
    wholes = {"head.weight": (40, 8), "a.weight": (8, 8), "b.weight": (8, 8)}
    wholes["token_embedding.weight"] = (40, 8)
    halves = {name: (rows // 2, width) for name, (rows, width) in wholes.items()}
    parameters = Parameters(wholes, [halves, halves], is_copied=False)
    for peer in sharded_peers.adamw(parameters):
        numel = sum(map(prod, halves.values()))
        assert peer.state == 8 * numel
        assert peer.log.device_seconds == pytest.approx(28 * numel / MEMORY)
    assert sharded_peers.newton_schulz_flops((8, 16)) == 25_600
    names = list(wholes)
    owners = sharded_peers.owners_of(wholes, names[1:3], 2)
    assert owners == {"a.weight": 0, "b.weight": 1}
    for peer in sharded_peers.muon(parameters):
        matrices = 4 * 64  # of two halves
        assert peer.state == matrices + 8 * 2 * 20 * 8
        assert peer.log.sent == peer.log.received == 2 * 2 * 32  # bfloat16, both ways


def test_main(tmp_path, capsys, monkeypatch):
    cases = [("tiny", ALONE, 1), ("tiny", FSDP, 2), ("tiny", DDP, 2)]
    monkeypatch.setattr(sharding, "CASES", [sharding.Case(*case) for case in cases])
    monkeypatch.setattr(sharding, "NETWORKS", {"tiny": TINY})
    output = tmp_path / "sharding.json"
    sharding.main(["--output", str(output)])
    found = json.loads(output.read_text())
    default, muon, adamw = found["steps"][:3]
    assert [x["optimizer"] for x in found["steps"][:3]] == ["default", "Muon", "AdamW"]
    assert default["ms"] > adamw["ms"] > 0 and muon["sent_mb"] == 0
    for divided in found["steps"][3::3]:
        assert divided["mean_share"] == pytest.approx(1)
        assert 1 <= divided["state_share"] < 1.5
    assert len(found["parts_ms"]) == 3
    assert "state_share" in capsys.readouterr().out
