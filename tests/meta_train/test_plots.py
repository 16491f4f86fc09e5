import numpy as np
import pytest

from meta_train.plots import moving_average, plot_curves, training_curves


def record(losses, accuracies):
    steps = list(range(len(accuracies)))
    return {
        "losses": losses,
        "curve": {"steps": steps, "loss": [1.0] * len(steps), "accuracy": accuracies},
    }


def test_a_moving_average_ends_where_a_loss_is_not_finite():
    averages = moving_average([1.0, 2.0, 4.0, None, 1.0], 2)
    assert averages[:2].tolist() == [1.5, 3]
    assert np.isnan(averages[2:]).all()


def test_short_runs_are_smoothed_less():
    steps, losses, window = training_curves([record(list(range(40)), [0.1])] * 2)
    assert window == 4
    assert (steps[0], steps[-1]) == (4, 40)
    assert losses.shape == (2, 37)
    assert training_curves([record([1.0] * 1000, [0.1])])[2] == 25


@pytest.mark.parametrize("accuracies", [[0.1, 0.5], [None, None]])
@pytest.mark.parametrize("count", [2, 12])
def test_curves_are_drawn_whether_runs_diverge_or_have_no_accuracy(tmp_path, accuracies, count):
    groups = {
        str(number): [record([2.0, 1.0, 0.5], accuracies), record([2.0, None, None], accuracies)]
        for number in range(count)
    }
    plot_curves(tmp_path / "a.png", "title", groups)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
