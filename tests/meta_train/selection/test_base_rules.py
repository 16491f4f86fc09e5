from math import exp, log

import pytest

from meta_train.selection.base_rules import LARGEST_GAIN, base_rule, gains, whole_runs
from ngopt.pretrained import load_pretrained
from ngopt.soap.config import SoapConfig
from tests.meta_train.small import TOY


def record(problem, loss):
    return {"run": {"problem": problem}, "validation": {"loss": loss}}


def test_gains_by_hand():
    old = [record("a", 2.0), record("a", 1.0), record("b", 1.0), record("c", 1.0)]
    new = [record("a", 1.8), record("a", 1.0), record("b", exp(3)), record("c", None)]
    by_problem = gains(new, old)
    assert by_problem["a"] == pytest.approx(log(2 / 1.8) / 2)
    assert by_problem["b"] == by_problem["c"] == -LARGEST_GAIN


def test_records_are_kept_for_each_variant(tmp_path):
    variants = {"start": base_rule({}), "other": base_rule({"step_size": 0.03})}
    first = whole_runs(variants, (TOY,), (0, 1), tmp_path)
    assert [r["run"]["seed"] for r in first["start"]] == [0, 1]
    assert first["start"][0]["validation"] != first["other"][0]["validation"]
    other = load_pretrained(tmp_path / "other.safetensors")
    assert other.config == SoapConfig(step_size=0.03)
    (file,) = (tmp_path / "records").iterdir()
    kept = file.read_text()
    assert kept.count("\n") == 4
    assert whole_runs(variants, (TOY,), (0, 1), tmp_path) == first
    assert file.read_text() == kept
