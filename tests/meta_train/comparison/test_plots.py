import numpy as np
import pytest

from meta_train.comparison.plots import plot_curves, training_curves


def record(losses, accuracies):
    steps = list(range(len(accuracies)))
    return {
        "run": {"curve_split": "test"},
        "losses": losses,
        "losses_every": 20,
        "curve": {"steps": steps, "loss": [1.0] * len(steps), "accuracy": accuracies},
    }


def test_a_training_curve_has_a_gap_where_a_loss_is_not_finite():
    steps, losses = training_curves([record([1.0, 2.0, None], [0.1])] * 2)
    assert steps.tolist() == [20, 40, 60]
    assert losses[:, :2].tolist() == [[1, 2], [1, 2]]
    assert np.isnan(losses[:, 2]).all()


@pytest.mark.parametrize("accuracies", [[0.1, 0.5], [None, None]])
@pytest.mark.parametrize("count", [2, 12])
def test_curves_of_diverged_runs_and_without_accuracy(tmp_path, accuracies, count):
    groups = {
        str(number): [
            record([2.0, 1.0, 0.5], accuracies),
            record([2.0, None, None], accuracies),
        ]
        for number in range(count)
    }
    plot_curves(tmp_path / "a.png", "title", groups)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
