import json

import pytest

from benchmarks import mixture


def test_rates_and_their_ratio(tmp_path, monkeypatch):
    sizes = {"layers": 1, "width": 4, "probes": 2}
    monkeypatch.setattr(mixture, "CASES", (("wild-park", "ng-gnn", sizes),))
    path = tmp_path / "speed.json"
    mixture.main(["--runs", "2", "--repeats", "1", "--output", str(path)])
    (record,) = json.loads(path.read_text())["records"]
    assert record["networks"] == 2 * mixture.ALIKE
    assert record["ratio"] == pytest.approx(record["together"] / record["apart"])
    first, second = mixture.random_stacks("wild-park", 2)
    assert first.architecture is not second.architecture
