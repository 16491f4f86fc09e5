import json

import pytest

from meta_train.comparison.situations import Config, run, situations

NAMES = "default", "adamw-wide", "adam-cosine-wide", "muon-wide"


def rows(problem, *losses):
    common = {"problem": problem, "steps": 10, "lr": 0.1}
    pairs = zip(NAMES, losses, strict=False)
    return [{**common, "optimizer": name, "test_loss": loss} for name, loss in pairs]


def test_largest_excess_is_first():
    table = rows("good", 1, 2, 3, 4) + rows("bad", 3, 4, 2, 4)
    table += rows("broken", None, 1, 1, 1)
    compared = situations(table)
    assert [situation.problem for situation in compared] == ["broken", "bad", "good"]
    assert [situation.excess for situation in compared[1:]] == [0.5, -0.5]


def test_missing_optimizers_are_an_error():
    with pytest.raises(ValueError, match="short: expected rows .* none of muon-wide"):
        situations(rows("short", 1, 2, 3))


def test_tables_are_printed_and_written(tmp_path, capsys):
    path = tmp_path / "validation.json"
    table = rows("good", 1, 2, 3, 0.5) + rows("level", 1.01, 1, 1, 4)
    path.write_text(json.dumps({"table": table}))
    output = tmp_path / "situations.md"
    run(Config((str(path),), str(output)))
    text = output.read_text()
    assert "validation: 2 problems: 1 better" in text
    counts = (
        "2 better or within 2 %, 0 more than 10 % worse; 1 better than the tuned Muon"
    )
    assert counts in text
    assert "| level " in text and "+1.0 %" in text
    assert "good" in capsys.readouterr().out
