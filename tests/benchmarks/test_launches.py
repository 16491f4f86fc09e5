import json
from itertools import product

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from benchmarks import launches
from benchmarks.launches import HORIZON, LIMITS, MIB, Counts
from benchmarks.shapes import NETWORKS
from tests.selection import quick_first

META = torch.device("meta")
# without a horizon there is an average beside, whose operations are the same in every
# network
CASES = [*product(NETWORKS, (HORIZON,)), ("ResNet-50", None)]
ALWAYS = [(network, HORIZON) for network in LIMITS if "Llama" not in network]


@pytest.mark.parametrize(("network", "horizon"), quick_first(CASES, ALWAYS))
def test_counts_are_within_the_limits(network, horizon):
    with launches.quiet():
        record = launches.counted(network, "default", horizon)
    limits = launches.limits_of(record)
    assert {key: record[key] for key in limits if record[key] > limits[key]} == {}
    assert record["ops"] > 100
    assert record["transient_mib"] > 100


def test_every_limit_is_of_a_network_that_is_counted():
    assert LIMITS.keys() <= NETWORKS.keys()
    record = {"network": "GPT-2 124M", "weights": "default", "horizon": HORIZON}
    assert launches.limits_of(record).keys() > {"ops", "most_ops", "state", "copies"}


def test_ops_copies_and_factorisations():
    with Counts() as counts:
        x = torch.empty(3, 4, 4, device=META)
        y = torch.bmm(x.mT, x).view(3, 16)[:, 1:]
        y += torch.ones(15).to(META)
        torch.linalg.vector_norm(x)
        torch.linalg.qr(x)
        (torch.ones(3) + 1).sum().item()  # on the host
    names = "bmm", "add_", "_to_copy", "linalg_vector_norm", "linalg_qr"
    assert counts.ops == dict.fromkeys(names, 1)
    assert (counts.copies, counts.reads, counts.factorisations) == (1, 0, 1)
    with pytest.raises(RuntimeError), Counts() as counts:
        torch.empty((), device=META).item()
    assert counts.reads == 1


def test_peak_of_memory():
    kept = torch.empty(MIB, device=META)
    with Counts() as counts:
        for _ in range(2):
            x = kept + 1  # 4 MiB
            y = x.half()  # 2
            del x
            z = torch.cat((y, y))  # 4
            z.mul_(2)
            del y, z
    assert counts.memory.peak == 6 * MIB


def test_kernels():
    def kernels(name, *args):
        return launches.kernels_of(name, args)

    x, row = torch.empty(1 << 24, device=META), torch.empty(1, device=META)
    assert kernels("mul", x, 2) == 1
    assert kernels("constant_pad_nd", x, [0, 1]) == 2
    assert kernels("cat", [row] * 300) == 3
    assert kernels("_foreach_add_", [x, x], [x, x]) == 2  # 512 chunks
    assert kernels("_foreach_norm", [x, x], 2) == 3
    assert kernels("_foreach_lerp_", [x, x], [x, x], [row, row]) == 2  # one a tensor
    assert kernels("_foreach_lerp_", [x] * 7, [x] * 7, [row] * 7) == 7


@pytest.mark.parametrize(
    "weights", ["ff", pytest.param("ng-gnn", marks=pytest.mark.thorough)]
)
def test_counts_of_metanets(weights):
    with launches.quiet():
        record = launches.counted("GPT-2 124M", weights, HORIZON)
    assert record["host_reads"] == 0
    assert record["transient_mib"] < 1200


def test_main(tmp_path, capsys):
    output = tmp_path / "new" / "launches.json"
    launches.main(["--networks", "GPT 34M", "--output", str(output)])
    records = json.loads(output.read_text())["counts"]
    assert [record["horizon"] for record in records] == [HORIZON, None]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "0 / 0" in lines[1]
