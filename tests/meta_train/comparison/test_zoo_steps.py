import json
from math import log10
from pathlib import Path
from statistics import fmean

import pytest
import torch

from meta_train.comparison import zoo_steps
from meta_train.comparison.exact_fits import train_default
from meta_train.comparison.zoo_steps import (
    Config,
    first_steps,
    psnr_by_steps,
    run,
    signal_fits,
)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(zoo_steps, "COUNTS", (4, 6))
    monkeypatch.setattr(zoo_steps, "LEVELS", (-99, 99))


def test_the_first_step_counts(monkeypatch):
    monkeypatch.setattr(zoo_steps, "LEVELS", (40, 60, 80))
    psnr = {50: torch.tensor([39.0, torch.nan]), 70: torch.tensor([41.0, 61.0])}
    assert first_steps(psnr) == {40: (70, 1), 60: (70, 1), 80: None}


def test_psnr_is_a_mean_over_signals():
    problems = list(signal_fits("sines", 2))
    plain = psnr_by_steps("plain", problems)
    scheduled = psnr_by_steps("total_steps", problems)
    assert [*plain] == [*range(7)]
    assert [*scheduled] == [4, 6]
    for psnr, is_scheduled in ((plain, False), (scheduled, True)):
        runs = [train_default(p, i, 6, is_scheduled) for i, p in enumerate(problems)]
        expected = fmean(-10 * log10(losses[-1]) for *_, losses in runs)
        assert psnr[6].item() == pytest.approx(expected, abs=1e-3)


def test_longer_trainings_end_at_the_highest_level(monkeypatch):
    monkeypatch.setattr(zoo_steps, "LEVELS", (-99,))
    assert [*psnr_by_steps("Adam, line to 0", list(signal_fits("sines", 1)))] == [4]


def test_table(tmp_path, capsys):
    run(Config(("sines",), 1, str(tmp_path)))
    stored = json.loads(Path(tmp_path, "zoo_steps.json").read_text())["sines"]
    assert stored["plain"] == {"-99": [0, 0], "99": None}
    assert stored["total_steps"] == {"-99": [4, 0], "99": None}
    table = Path(tmp_path, "zoo_steps.md").read_text()
    assert "| sines  | 99       | -     | -           | -" in table
    assert "sines   -99       0      4" in capsys.readouterr().out
