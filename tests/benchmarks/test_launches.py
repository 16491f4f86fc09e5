import ast
import json
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from benchmarks import cost_model, launches
from benchmarks.launches import HORIZON, LIMITS, MIB, Counts
from benchmarks.shapes import NETWORKS

META = torch.device("meta")
# without a horizon there is an average beside, whose operations are the same in every
# network
CASES = [*product(NETWORKS, (HORIZON,)), ("ResNet-50", None)]


@pytest.mark.parametrize(("network", "horizon"), CASES)
def test_counts_are_within_the_limits(network, horizon):
    with launches.quiet():
        record, predicted = launches.counted(network, "default", horizon)
    limits = launches.limits_of(record)
    assert {key: record[key] for key in limits if record[key] > limits[key]} == {}
    assert record["ops"] > 100
    assert record["transient_mib"] > 100
    parts = {part for part in cost_model.PARTS if predicted[part] > 0}
    assert parts == {"rotation", "factors", "renewal", "elementwise", "scalars"}
    assert predicted["elementwise_fused"] < 0.7 * predicted["elementwise"]


def test_parts_are_told_by_functions_of_the_library():
    defined: set[str] = set()
    for file in Path(cost_model.PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                defined.add(node.name)
    assert defined >= cost_model.NAMES


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
    found = {
        "bmm": 1,
        "add_": 1,
        "_to_copy": 1,
        "linalg_vector_norm": 1,
        "linalg_qr": 1,
    }
    assert counts.ops == found
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
        return cost_model.kernels_of(name, args)

    x, row = torch.empty(1 << 24, device=META), torch.empty(1, device=META)
    assert kernels("mul", x, 2) == 1
    assert kernels("constant_pad_nd", x, [0, 1]) == 2
    assert kernels("cat", [row] * 300) == 3
    assert kernels("_foreach_add_", [x, x], [x, x]) == 2  # 512 chunks
    assert kernels("_foreach_norm", [x, x], 2) == 3
    assert kernels("_foreach_lerp_", [x, x], [x, x], [row, row]) == 2  # one a tensor
    assert kernels("_foreach_lerp_", [x] * 7, [x] * 7, [row] * 7) == 7


def test_seconds_of_products():
    prediction = cost_model.Prediction()
    x = torch.empty(8, 4096, 2048, device=META, dtype=torch.bfloat16)
    with Counts(prediction):
        torch.bmm(x, x.mT)
    flops = 2 * 8 * 4096 * 4096 * 2048
    found = prediction.milliseconds()
    assert found["products"] == pytest.approx(1e3 * flops / 700e12)
    assert found["host"] == pytest.approx(5e-3)
    assert found["eager"] == found["fused"] == found["products"]


@pytest.mark.parametrize(
    ("weights", "longest"),
    [
        ("ff", (5, 25)),
        pytest.param("ng-gnn", (100, 600), marks=pytest.mark.thorough),
    ],
)
def test_predictions_of_metanets(weights, longest):
    with launches.quiet():
        record, predicted = launches.counted("GPT-2 124M", weights, HORIZON)
    assert record["host_reads"] == 0
    assert record["transient_mib"] < 1200
    assert predicted["head"] > 4
    assert longest[0] < predicted["longest"] < longest[1]
    assert predicted["fused"] < 100


def test_a_compiled_function_reads_and_writes_once():
    source = """
def accumulate(grad, momentum, scale):
    grad = (grad + 1).mul_(scale)
    momentum.mul_(scale).add_(grad)
    return grad.half()
"""
    own: dict = {}
    exec(compile(source, f"{cost_model.PACKAGE}/made_up.py", "exec"), own)
    n = 1 << 24
    grad, momentum = (torch.empty(n // 64, 64, device=META) for _ in range(2))
    scale = torch.empty(n // 64, 1, device=META)
    prediction = cost_model.Prediction()
    with Counts(prediction):
        kept = own["accumulate"](grad, momentum, scale)
        kept + 1
    prediction.close()
    assert (prediction.launches, prediction.fused_launches) == (6, 2)
    accumulated = 4 * n + 2 * 4 * n + 2 * n + 4 * n // 64  # bytes
    added = 2 * 2 * n
    assert prediction.fused == pytest.approx((accumulated + added) / cost_model.MEMORY)
    eager = (8 + 8 + 8 + 12 + 6 + 4) * n + 2 * 4 * n // 64
    found = prediction.device["elementwise"]
    assert found == pytest.approx(eager / cost_model.MEMORY)


def test_main(tmp_path, capsys):
    output = tmp_path / "new" / "launches.json"
    launches.main(["--networks", "GPT 34M", "--output", str(output)])
    found = json.loads(output.read_text())
    assert [record["horizon"] for record in found["counts"]] == [HORIZON, None]
    (predicted,) = found["predicted_ms"]
    assert predicted["fused"] < predicted["eager"]
    lines = capsys.readouterr().out.splitlines()
    assert "0 / 0" in lines[1]
    assert "predicted milliseconds" in lines[4]
