import json
from pathlib import Path

import pytest

from meta_train.comparison.optimizers import OPTIMIZERS
from meta_train.paper import demo
from tests.meta_train.small import TOY


def test_the_demonstration_writes_a_table_a_picture_and_results(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "demo"
    monkeypatch.setattr(demo, "PROBLEM", TOY)
    demo.run(demo.Config(steps=40, folder=str(folder)))
    records = json.loads((folder / "results.json").read_text())["records"]
    adam, muon, learned = records.values()
    assert list(records) == [
        "Adam (tuned: lr 0.04, cosine)",
        "Muon (tuned: lr 0.05, cosine)",
        "NGOptimizer (untuned)",
    ]
    for record, *expected in ((adam, "adam-cosine", 0.04), (muon, "muon-cosine", 0.05)):
        run = record["run"]
        assert [run["optimizer"], run["lr"], run["steps"]] == [*expected, 40]
    assert learned["run"]["weights"] is not None
    assert adam["losses"][0] == muon["losses"][0] == learned["losses"][0]
    assert adam["losses"][1:] != learned["losses"][1:] != muon["losses"][1:]
    printed = capsys.readouterr().out
    for r in (adam, muon, learned):
        assert f"{100 * r['test']['accuracy']:.2f}" in printed
    assert str(folder / "curves.png") in printed
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_tuned_rates_are_the_best_of_the_grids():
    results = Path(__file__).parents[3] / "results" / "paper_tasks" / "results.json"
    rows = json.loads(results.read_text())["table"]
    best = {r["optimizer"]: r["lr"] for r in rows if r["problem"] == demo.PROBLEM}
    for optimizer, lr in demo.TUNED.values():
        assert lr == best[optimizer]
        assert lr in OPTIMIZERS[optimizer].lrs[1:-1]


def test_file_in_place_of_the_folder_is_an_error_before_any_run(tmp_path, monkeypatch):
    monkeypatch.delattr(demo, "demo")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"folder '{file}': expected a folder"):
        demo.run(demo.Config(folder=str(file)))
