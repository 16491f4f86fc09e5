"""The paper's table and figure, on toy problems in the place of its two."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from meta_train.comparison import optimizers
from meta_train.comparison.leaderboard import compare
from meta_train.paper import figure3, table2
from meta_train.paper.table2 import FIVE, FIVE_OPEN, PUBLISHED, Config
from meta_train.problems import LISTS
from ngopt import list_pretrained
from tests.meta_train.small import CONTRARY, TOY


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(LISTS, "paper", (TOY, CONTRARY))
    monkeypatch.setattr(figure3, "PROBLEM", CONTRARY)
    spec = replace(optimizers.OPTIMIZERS["adam"], lrs=(0.003, 0.03))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adam", spec)
    return Config(
        optimizers=("adam", "ff"), seeds=2, steps=4, folder=str(tmp_path / "out")
    )


def test_table_has_our_and_published_accuracies(config, capsys):
    table2.run(config)
    records = compare(config).records
    lines = Path(config.folder, "table2.md").read_text().splitlines()
    assert len(lines) == 4
    name, ours, published, others, others_published, tuning, *_ = (
        cell.strip() for cell in lines[3].split("|")[1:-1]
    )
    assert (name, tuning) == ("ff", "0")
    assert (published, others_published) == ("85.08 ± 0.14", "57.55 ± 1.06")
    for cell, problem in ((ours, TOY), (others, CONTRARY)):
        accuracies = [r["test"]["accuracy"] for r in records[problem, "ff"]]
        assert cell.startswith(f"{100 * mean(accuracies):.2f} ± ")
    assert "ff         " in capsys.readouterr().out


def test_curves_are_of_the_test_split(config, capsys):
    figure3.run(config)
    assert Path(config.folder, "figure3.png").stat().st_size > 10_000
    for records in compare(config).records.values():
        for record in records:
            assert record["run"]["curve_split"] == "test"
            assert record["curve"]["loss"][-1] == pytest.approx(record["test"]["loss"])
    assert capsys.readouterr().out.count("\n") > 3


def test_compared_optimizers_include_those_of_the_paper():
    assert {*FIVE, "adam"} == PUBLISHED.keys()
    assert {*FIVE, *FIVE_OPEN} < set(Config().optimizers)
    names = {name.removesuffix(optimizers.OPEN) for name in Config().optimizers}
    assert names <= {*optimizers.OPTIMIZERS, *list_pretrained()}
