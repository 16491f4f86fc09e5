import json

import pytest

pytest.importorskip("torch_geometric")

from benchmarks import graph_training
from tasks.networks.architectures import architecture_of


def test_rates_and_their_ratio_by_number_of_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_training, "SIREN", {"kind": "siren", "widths": [2, 3, 1]})
    path = tmp_path / "speed.json"
    options = "--copies 2 3 --width 4 --rounds 2 --repeats 1"
    graph_training.main([*options.split(), "--output", str(path)])
    records = json.loads(path.read_text())["records"]
    assert [record["copies"] for record in records] == [2, 3]
    for record in records:
        assert record["ratio"] == pytest.approx(record["ng-gnn"] / record["PNAConv"])


def test_each_copy_has_edges_in_two_directions():
    graph = architecture_of({"kind": "siren", "widths": [2, 3, 1]}).graph
    index = graph_training.EdgeListPNA(graph, copies=2, width=4, rounds=1).index
    pairs = set(map(tuple, index.T.tolist()))
    assert len(pairs) == index.shape[1] == 2 * 2 * (2 * 3 + 3)
    assert all((target, source) in pairs for source, target in pairs)
    assert all(source // 6 == target // 6 for source, target in pairs)
    assert {(0, 2), (6, 8), (2, 5)} <= pairs
