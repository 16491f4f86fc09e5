import json
from dataclasses import replace
from math import exp, log

import pytest

from meta_train.selection import ablate
from ngopt.pretrained import load_pretrained
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from tests.meta_train.small import TOY


def test_every_part_is_a_change_of_the_rule():
    for changes in ablate.PARTS.values():
        assert replace(SoapConfig(), **changes) != SoapConfig()


def test_worth_is_the_loss_without_the_part(tmp_path, monkeypatch, capsys):
    parts = {"steps": {"step_size": 1e-6}, "nothing": {}}
    monkeypatch.setattr(ablate, "PARTS", parts)
    ablate.run(ablate.Config(problems=(TOY,), seeds=2, folder=str(tmp_path)))
    worth = json.loads((tmp_path / "ablation.json").read_text())["worth"]
    assert worth["steps"][TOY] > 0
    assert worth["nothing"][TOY] == 0
    assert "| steps" in (tmp_path / "ablation.md").read_text()
    assert "steps" in capsys.readouterr().out


def record(problem, loss):
    return {"run": {"problem": problem}, "validation": {"loss": loss}}


def test_gains_by_hand():
    old = [record("a", 2.0), record("a", 1.0), record("b", 1.0), record("c", 1.0)]
    new = [record("a", 1.8), record("a", 1.0), record("b", exp(3)), record("c", None)]
    by_problem = ablate.gains(new, old)
    assert by_problem["a"] == pytest.approx(log(2 / 1.8) / 2)
    assert by_problem["b"] == by_problem["c"] == -ablate.LARGEST_GAIN


def test_records_are_kept_for_each_variant(tmp_path):
    variants = {"start": Soap(), "other": Soap(SoapConfig(step_size=0.03))}
    first = ablate.whole_runs(variants, (TOY,), (0, 1), tmp_path)
    assert [r["run"]["seed"] for r in first["start"]] == [0, 1]
    assert first["start"][0]["validation"] != first["other"][0]["validation"]
    other = load_pretrained(tmp_path / "other.safetensors")
    assert other.config == SoapConfig(step_size=0.03)
    (file,) = (tmp_path / "records").iterdir()
    kept = file.read_text()
    assert kept.count("\n") == 4
    assert ablate.whole_runs(variants, (TOY,), (0, 1), tmp_path) == first
    assert file.read_text() == kept
