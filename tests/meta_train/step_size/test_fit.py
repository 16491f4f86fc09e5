from dataclasses import asdict, replace
from itertools import chain

import numpy as np
import pytest
import torch

from harness.files import append_line, read_json, read_lines
from meta_train.step_size import check, fit
from meta_train.step_size.fit import (
    Settings,
    applied,
    best_limits,
    fitted,
    fitted_without,
    folds,
    trusting,
    utility,
)
from meta_train.step_size.outcomes import (
    GROUPS,
    Data,
    features_of,
    gains_at,
    gains_of,
    read_data,
)
from meta_train.step_size.trainings import FAMILIES
from ngopt.learned_step.features import FEATURES
from ngopt.pretrained import load_pretrained
from tests.meta_train.step_size.test_collect import BASE
from tests.predictors import learned, random_predictor

ACTIVATIONS = "relu", "tanh", "gelu"
VARIANTS = ["0.5", "1", "2", "slope -1", "slope 1"]
QUICK = Settings(caution=(0.0, 0.0), members=3, points=20)


def made(best, families=("mlp", "cnn")):
    """Trainings whose best log2 factor is `best` times their first feature."""
    x = np.random.RandomState(0).uniform(-1, 1, (120, 1, 1, len(FEATURES)))
    x = np.tile(x, (1, 2, 2, 1))
    peaks = best * x[:, 0, 0, 0]
    falls = [peaks**2 - (at - peaks) ** 2 for at in (-1, 1)]
    gains = 0.1 * np.stack([*falls, *np.zeros((2, len(x)))], 1)
    trainings = []
    for i in range(len(x)):
        family = families[i % len(families)]
        trainings.append(replace(BASE, seed=i, family=family, task_name=str(i % 20)))
    return Data(trainings, np.tile(gains[:, :, None], 2), x)


def test_features_are_those_of_the_library():
    training = replace(BASE, family="cnn", task_name="images", norm="group", batch=16)
    named, unnamed = features_of(training)
    assert np.shape(named) == (2, len(FEATURES)) == np.shape(unnamed)
    assert named[0] != named[1]
    of_seed = dict(zip(FEATURES, named[0], strict=True))
    assert of_seed["log steps"] == pytest.approx(np.log(6 / 500), rel=1e-5)
    assert of_seed["norms per matrix"] > 0


def test_losses_count_more_than_gains():
    found = utility(torch.tensor([0.1, -0.1]))
    torch.testing.assert_close(found, torch.tensor([0.1, -0.4]))


def test_gains_are_on_parabolas():
    gains = torch.tensor([[-0.3, 0.1, 0.2, 0.4]])
    for place, expected in {
        (-1.0, 0.0): -0.3,
        (1.0, 0.0): 0.1,
        (0.0, 0.0): 0.0,
        (1.0, -1.0): 0.3,
        (0.0, 1.0): 0.4,
        (0.5, 0.0): 0.2 / 2 - 0.1 / 4,
    }.items():
        assert float(gains_at(torch.tensor([place]), gains)) == pytest.approx(expected)


def test_gains_of_a_record():
    losses = [[2.0, 1.0], [1.0, 1.0], [0.5, np.inf], [1.0, 2.0], [0.5, 1.0]]
    losses[2][1] = None
    record = {"variants": VARIANTS, "first": [1.0, 1.0], "validation": losses}
    found = gains_of({**record, "task_name": "poisson"})
    expected = [[-1.0, 0.0], [1.0, -1.0], [0.0, -1.0], [1.0, 0.0]]
    expected = np.log(2) * np.array(expected)
    expected[1, 1] = -1  # as if the loss were e times the first one
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    short = {"variants": VARIANTS[:3], "validation": losses[:3]}
    found = gains_of({**record, **short, "task_name": "poisson"})
    np.testing.assert_allclose(found[2:], 0)


def test_tiny_losses_count_where_fits_are_exact():
    losses = [[1e-5, 1e-5], [1e-6, 1e-6], [1e-7, 1e-7]]
    record = {"variants": VARIANTS[:3], "first": [1.0, 1.0], "validation": losses}
    exact = gains_of({**record, "task_name": "picture"})
    assert (exact[1] == 1).all()
    assert (abs(gains_of({**record, "task_name": "images"})[1]) < 0.01).all()


def test_a_predictor_learns_where_peaks_are():
    data = made(0.8)
    found = fitted(data, QUICK).predict(torch.tensor(data.x[:, 0, 0]).float())
    expected = data.x[:, 0, 0, 0]
    assert np.corrcoef(found[:, 0], expected)[0, 1] > 0.95
    # losses weigh more, therefore steps are nearer to the rule's than the best
    assert 0.2 < (found[:, 0].numpy() @ expected) / (expected @ expected) < 0.8
    assert found[:, 1].abs().max() < 0.05


def test_the_reach_is_short_where_other_families_are_different():
    same = made(0.8)
    different = replace(same, gains=same.gains.copy(), x=same.x.copy())
    is_other = np.array([x.family == "cnn" for x in same.trainings])
    different.gains[is_other] *= -1
    different.x[is_other] += 3
    settings = replace(QUICK, steps=60)
    reaches = []
    for data in (different, same):
        at_random = fitted_without(data, settings, folds(np.arange(120), 3))
        left_out = fitted_without(data, settings, data.groups)
        reaches.append(best_limits(data, [at_random, left_out])["reach"])
    assert reaches[0] < reaches[1]


def test_points_near_losses_are_not_trusted():
    data = made(0.8)
    predictor = fitted(data, replace(QUICK, steps=60, points=120))
    x = torch.tensor(data.x[:, 0, 0]).float()
    assert (predictor.predict(x).abs().sum(1) > 0).all()
    assert not trusting(predictor, data, np.full(120, -1.0)).predict(x).any()
    gains = np.where(data.x[:, 0, 0, 0] > 0, 1.0, -1.0)
    trusted = trusting(predictor, data, gains).predict(x)[:, 0]
    np.testing.assert_array_equal(trusted != 0, gains > 0)


def test_predictions_are_applied_within_their_limits():
    given = torch.tensor([[0.01, 0.01], [0.5, 0.2], [0.9, -0.4], [-2.0, 3.0]])
    expected = torch.tensor([[0.0, 0.0], [0.5, 0.2], [0.9, -0.1], [-1.0, 0.0]])
    torch.testing.assert_close(applied(given), expected)


def test_every_family_is_in_one_group():
    families = list(chain.from_iterable(GROUPS.values()))
    assert sorted(families) == sorted(FAMILIES)


def test_a_kind_is_in_one_fold():
    fold = folds(np.array(["a", "b", "c", "a", "b", "d"]))
    assert fold[0] == fold[3] and fold[1] == fold[4]
    assert len(set(fold)) == 4


def test_gains_are_measured_on_kinds_that_are_left_out():
    data = made(0.8)
    left_out = fitted_without(data, QUICK, folds(data.kinds, 4))
    gains = left_out.gains(data)
    assert gains.mean() > 0.5
    random = replace(data, gains=np.random.RandomState(1).permutation(data.gains))
    left_out = fitted_without(random, QUICK, folds(data.kinds, 4))
    assert left_out.gains(random).mean() < 0.5


@pytest.fixture
def folder(tmp_path):
    """Outcomes of small networks, which want longer steps, mostly of the last layer."""
    for seed in range(6):
        family = ("mlp", "gated")[seed // 3]
        activation = ACTIVATIONS[seed % 3]
        training = replace(BASE, seed=seed, family=family, activation=activation)
        losses = [[1.2] * 2, [1.0] * 2, [0.8] * 2, [1.1] * 2, [0.9] * 2]
        record = {"variants": VARIANTS, "first": [1.0, 1.0], "validation": losses}
        append_line(tmp_path / "outcomes.jsonl", {**asdict(training), **record})
    return tmp_path


def test_features_are_cached(folder):
    data = read_data(folder)
    for _ in range(2):
        assert len(list(read_lines([folder / "features.jsonl"]))) == 6
        np.testing.assert_array_equal(data.x, read_data(folder).x)
    assert data.x.shape == (6, 2, 2, len(FEATURES)) and data.gains.shape == (6, 4, 2)


def test_a_folder_without_outcomes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder: expected outcomes"):
        read_data(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(fit, "FOLDS", 2)
    monkeypatch.setattr(fit, "Settings", lambda: replace(QUICK, steps=60))


def test_the_comparison_is_printed_and_written(folder, quick, capsys):
    fit.main(fit.Config(str(folder)))
    printed = capsys.readouterr().out
    assert "6 trainings of 6 kinds" in printed and "as written" in printed
    rows = read_json(folder / "compare.json", "comparison")["rows"]
    rows = {row["model"]: row for row in rows}
    assert rows["no caution"]["all"] >= rows["as written"]["all"]
    assert rows["all trusted"]["all"] > 5


def test_the_fitted_predictor_is_written_and_checked(folder, quick, capsys):
    fit.main(fit.Config(str(folder)))
    path = folder / "learned-step.safetensors"
    rule = load_pretrained(path)
    assert rule.config == load_pretrained().config
    x = torch.tensor(read_data(folder).x[:, 0, 0]).float()
    assert rule.multiplier.predictor.predict(x).mean() > 0.1
    config = check.Config(first=16, count=1, rule=str(path), folder=str(folder))
    check.main(config)
    check.main(config)
    (record,) = read_lines([folder / "checks.jsonl"])
    assert record["variants"][0] == "base rule"
    assert "worse by 5 %" in capsys.readouterr().out


def test_only_runs_that_differ_are_measured():
    predictor = random_predictor()
    record = check.measure(16, learned(predictor))
    assert record["variants"] == ["base rule", "seed 0", "seed 1"]
    assert check.gain_of(record) != 0
    record = check.measure(16, learned(predictor._replace(trusted=torch.zeros(3))))
    assert record["variants"] == ["base rule"]
    assert check.gain_of(record) == 0
