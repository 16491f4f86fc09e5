"""The coordinate check runs, and docs/graph.md has its exponents."""

import json
from pathlib import Path

import pytest

from benchmarks import coordinate_check

ROOT = Path(__file__).parents[2]


def test_records(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(coordinate_check, "WIDTHS", (32, 64))
    path = tmp_path / "check.json"
    arguments = ["--networks", "llama", "--seeds", "1", "--output", str(path)]
    coordinate_check.main(arguments)
    plain, by_width = json.loads(path.read_text())["coordinates"]
    assert plain["exponent"] > by_width["exponent"]
    assert "mup_groups" in capsys.readouterr().out


def test_docs_have_the_exponents_on_record():
    record = json.loads((ROOT / "results/coordinate_check.json").read_text())
    text = (ROOT / "docs/graph.md").read_text()
    for groups, label in (("one rate", "one learning rate"), ("mup_groups", None)):
        rows = [row for row in record["coordinates"] if row["groups"] == groups]
        cells = " | ".join(f"{row['exponent']:.2f}" for row in rows)
        assert f"| {label or '`mup_groups`'} | {cells} |" in text
