from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from harness.files import append_line, read_json, read_lines
from meta_train.step_size import compare, fit
from meta_train.step_size.compare import folds, gains_at, left_out, scored
from meta_train.step_size.dataset import read_data, read_slopes
from meta_train.step_size.feature_sets import CHOSEN, HORIZON, Table, features
from meta_train.step_size.models import (
    Constant,
    Ensemble,
    Predictor,
    Settings,
    Trees,
    utility,
)
from meta_train.step_size.outcomes import refined
from meta_train.step_size.role_variants import SLOPES
from ngopt import build_graph
from ngopt.learned_step.predictor import Scaling, StepPredictor
from ngopt.pretrained import load_pretrained
from ngopt.roles.from_graph import roles_of
from tests.meta_train.step_size.test_copies import BASE

GRID = np.arange(-3.0, 4.0)
ACTIVATIONS = "relu", "tanh", "gelu"


def peaked(best):
    """Gains (n, 7) with the peak at `best`, (n,)."""
    return 0.1 * (best[:, None] ** 2 - (GRID - best[:, None]) ** 2)


def examples(slope):
    """Features, gains with the peak at slope times the first feature, and kinds."""
    x = np.random.RandomState(0).uniform(-1, 1, (120, 3))
    return x, peaked(slope * x[:, 0]), np.array([str(i % 20) for i in range(len(x))])


def pair(outputs, caution):
    """A predictor of one feature, mean 0 and scale 1, with constant members."""
    bias = torch.tensor(outputs, dtype=torch.float64)[:, None, None]
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    layers = [(torch.zeros_like(bias), bias)]
    return Predictor(Scaling(zero, one, -one, one), layers, caution)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_of_a_network_that_diverged_are_finite(value):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    torch.nn.init.constant_(model[0].weight, value)
    params = [p.detach() for p in model.parameters()]
    params = [p.detach() for p in model.parameters()]
    roles = roles_of(build_graph(model.named_parameters()))
    for gradient in (value, 1.0):
        grads = [torch.full_like(p, gradient) for p in params]
        values = list(features(Table(roles, params, grads), 100).values())
        assert np.isfinite(values).all()


def test_refined_gains_keep_the_measured_ones_and_do_not_overshoot():
    gains = np.random.RandomState(1).randn(4, 7, 2)
    fine, curves = refined(GRID, gains)
    np.testing.assert_allclose(curves[:, ::4], gains)
    np.testing.assert_allclose(fine[::4], GRID)
    assert curves.max() == gains.max() and curves.min() == gains.min()


def test_losses_count_more_than_gains():
    np.testing.assert_allclose(utility(np.array([0.1, -0.1])), [0.1, -0.4])


@pytest.mark.parametrize("width", (0, 8))
def test_an_ensemble_learns_where_peaks_are(width):
    x, gains, kinds = examples(slope=1.5)
    model = Ensemble(GRID, Settings(width=width, caution=0.0, members=3))
    model.fit(x, gains, kinds)
    found = model.predict(x)
    assert np.corrcoef(found, x[:, 0])[0, 1] > 0.95
    # losses weigh more, therefore steps are shorter than the best
    slope = (found @ x[:, 0]) / (x[:, 0] @ x[:, 0])
    assert 0.5 < slope < 1.5


def test_trees_learn_where_peaks_are():
    x, gains, kinds = examples(slope=1.5)
    model = Trees(GRID, count=30)
    model.fit(x, gains, kinds)
    assert np.corrcoef(model.predict(x), x[:, 0])[0, 1] > 0.8


def test_a_constant_is_the_best_of_all():
    model = Constant(GRID)
    model.fit(np.zeros((5, 1)), peaked(np.full(5, 1.0)), np.array(["a"] * 5))
    np.testing.assert_allclose(model.predict(np.zeros((2, 1))), 1.0, atol=0.25)


def test_members_that_disagree_change_nothing():
    x = np.zeros((1, 1))
    assert pair([0.5, -0.4], caution=0.5).predict(x) == 0
    agreed = pair([0.5, 0.5], caution=0.5).predict(x)
    np.testing.assert_allclose(agreed, 3 * np.tanh(0.5 / 3))


def test_beyond_the_data_predictions_decay():
    model = pair([0.5, 0.5], caution=0.0)
    inside, outside, far = model.predict(np.array([[1.0], [2.0], [30.0]]))
    assert outside == pytest.approx(inside / np.e)
    assert abs(far) < 1e-9


def test_the_library_predicts_the_same():
    d = len(CHOSEN)
    x = np.random.RandomState(0).randn(40, d)
    gains = x[:, :1] * GRID
    kinds = np.arange(40) % 7
    model = Ensemble(GRID, Settings(steps=20))
    model.fit(x, gains, kinds)
    assert model.predictor is not None
    slopes = Ensemble(GRID, Settings(steps=20, caution=0.1))
    slopes.fit(x, -gains, kinds)
    assert slopes.predictor is not None
    tensors = fit.tensors_of(model.predictor, slopes.predictor)
    for values in (x, 2 * x):  # within the range and beyond
        found = StepPredictor.of(tensors).predict(torch.tensor(values))
        for own, expected in zip(found, (model, slopes), strict=True):
            np.testing.assert_allclose(own, expected.predict(values), atol=1e-4)
            assert abs(own).max() > 0.02


def test_a_kind_is_in_one_fold():
    fold = folds(np.array(["a", "b", "c", "a", "b", "d"]))
    assert fold[0] == fold[3] and fold[1] == fold[4]
    assert len(set(fold)) == 4


@pytest.fixture
def folder(tmp_path):
    """Outcomes of small networks, whose best multiplier is 2."""
    """Outcomes of small networks, whose best multiplier is 2."""
    losses = np.exp(-peaked(np.ones(1))[0])
    for seed in range(6):
        training = replace(BASE, seed=seed, activation=ACTIVATIONS[seed % 3])
        record = {
            **asdict(training),
            "multipliers": list(2**GRID),
            "first": [1.0, 1.0],
            "validation": [[loss, loss] for loss in losses],
        }
        append_line(tmp_path / "outcomes.jsonl", record)
        # at a multiplier of 2, where longer steps of the last layer are better
        slopes = {"multiplier": 2.0, "variants": list(SLOPES)}
        slopes["validation"] = [[1.0, 1.1], [0.9, 0.9], [0.8, 0.85]]
        append_line(tmp_path / "slopes.jsonl", {**record, **slopes})
    return tmp_path


def test_features_are_cached(folder):
    data = read_data(folder)
    for _ in range(2):
        assert len(list(read_lines([folder / "features.jsonl"]))) == 6
        np.testing.assert_array_equal(data.x, read_data(folder).x)
    assert set(CHOSEN) <= set(data.names)


def test_networks_that_are_trained_or_have_no_matrices_are_no_examples(folder):
    data = read_data(folder)
    everything = np.ones(6, dtype=bool)
    x, gains, kinds = data.examples(HORIZON, everything)
    assert x.shape == (24, 2) and gains.shape == (24, 7) and len(kinds) == 24
    data.x[0, 1, data.names.index("mean excess")] = 0.1
    data.x[2, :, data.names.index("no matrices")] = 1
    _, _, kinds = data.examples(HORIZON, everything)
    assert list(kinds) == [data.kinds[i] for i in (1, 3, 4, 5)] * 4


def test_gains_are_those_of_the_predicted_multiplier(folder):
    data = read_data(folder)
    places = left_out(lambda: Constant(GRID), HORIZON, data)
    np.testing.assert_allclose(places, 1.0, atol=0.25)
    np.testing.assert_allclose(gains_at(np.ones((6, 2)), data), 10, rtol=0.01)
    row = scored(-np.ones((6, 2)), data, "too short")
    assert row["worse by 15 %"] == 100
    assert row["all"] == pytest.approx(-30, rel=0.01)


def test_the_comparison_is_printed_and_written(folder, monkeypatch, capsys):
    monkeypatch.setattr(compare, "FOLDS", 2)
    monkeypatch.setattr(compare, "Trees", Constant)
    monkeypatch.setattr(compare, "Ensemble", lambda grid, *_: Constant(grid))
    compare.main(compare.Config(str(folder)))
    printed = capsys.readouterr().out
    assert "6 trainings of 3 kinds" in printed and "multiplier 1" in printed
    rows = read_json(folder / "compare.json", "comparison")["rows"]
    assert rows[0]["all"] == 0
    assert rows[1]["all"] > 9
    assert "slopes: 6 trainings of 3 kinds" in printed
    rows = read_json(folder / "compare.json", "comparison")["slopes"]
    slopes = {row["model"]: row["all"] for row in rows}
    assert slopes["slope, chosen"] == pytest.approx(8.7, abs=0.2)
    both = slopes["factor"] + slopes["slope, chosen"]
    assert slopes["factor and slope"] == pytest.approx(both)


def test_slopes_are_data_of_their_trainings(folder):
    data = read_data(folder)
    lines = (folder / "slopes.jsonl").read_text().splitlines(keepends=True)
    (folder / "slopes.jsonl").write_text("".join(lines[4:1:-1]))
    slopes, factors = read_slopes(folder, data)
    assert factors.tolist() == [1, 1, 1]
    assert [training.seed for training in slopes.trainings] == [4, 3, 2]
    np.testing.assert_array_equal(slopes.x, data.x[[4, 3, 2]])
    assert slopes.log_multipliers.tolist() == [-1, 0, 1]
    expected = np.log([1.0, 0.9, 0.8]) - np.log(0.9)
    np.testing.assert_allclose(slopes.gains[0, :, 0], -expected, rtol=0.01)
    (folder / "slopes.jsonl").unlink()
    assert read_slopes(folder, data) is None
    with pytest.raises(ValueError, match="folder: expected slopes"):
        fit.main(fit.Config(str(folder)))


def test_the_fitted_predictor_is_written(folder, capsys):
    fit.main(fit.Config(str(folder)))
    assert capsys.readouterr().out.count("6 trainings") == 2
    rule = load_pretrained(folder / "learned-step.safetensors")
    assert rule.config == load_pretrained().config
    x = torch.tensor(read_data(folder).columns(CHOSEN)[:, 0])
    assert (rule.multiplier.predictor.predict(x) > 0.3).all()


def test_trainings_of_later_files_are_measured_by_a_fit_to_earlier_ones(folder):
    lines = (folder / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (folder / "outcomes.jsonl").write_text("".join(lines[:4]))
    (folder / "outcomes_later.jsonl").write_text("".join(lines[4:]))
    data = read_data(folder)
    assert data.files.tolist() == [0] * 4 + [1] * 2
    data.gains[4:] *= -1
    (row,) = compare.on_later(data, lambda: Constant(GRID))
    assert row["model"] == "fit to 4, on 2 later trainings"
    assert row["all"] == pytest.approx(-10, rel=0.05)
    data.kinds[5] = "new"
    _, new = compare.on_later(data, lambda: Constant(GRID))
    assert "1 of new kinds" in new["model"]
    assert new["all"] == pytest.approx(-10, rel=0.05)
