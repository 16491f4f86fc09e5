from dataclasses import replace

import pytest

from meta_train.step_size.compare_roles import compared
from meta_train.step_size.copies import measured
from meta_train.step_size.outcomes import UNCHANGED, gains_of
from meta_train.step_size.role_variants import role_variants
from meta_train.step_size.trainings import started
from tests.meta_train.step_size.test_copies import BASE, TRAININGS


def rates(training, name):
    """Step size of each parameter, by name."""
    names = [own for own, _ in started(training, 0).named_parameters()]
    return dict(zip(names, role_variants(training, 1.5)[name].lr, strict=True))


def test_one_role_is_changed():
    model = started(BASE, 0)
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert set(rates(BASE, UNCHANGED).values()) == {1.5}
    outputs = rates(BASE, "output 2")
    vectors = rates(BASE, "vectors 2")
    inputs = rates(BASE, "inputs 0.5")
    for name in outputs:
        assert outputs[name] == (3.0 if name == matrices[-1] else 1.5)
        assert vectors[name] == (1.5 if name in matrices else 3.0)
        first = name.split(".")[0] == matrices[0].split(".")[0]
        assert inputs[name] == (0.75 if first else 1.5)
    found = [rates(BASE, "depth 2")[name] for name in matrices]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.75) and found[-1] == pytest.approx(3.0)


def test_changes_without_effect_are_left_out():
    assert "table 2" not in role_variants(BASE, 1.0)
    assert "table 2" in role_variants(TRAININGS["words"], 1.0)
    assert "depth 2" not in role_variants(replace(BASE, depth=1, norm="none"), 1.0)


def test_weight_decay_of_the_default_is_multiplied():
    """A variant with the default's own decay trains as the default does."""
    variants = role_variants(BASE, 1.0)
    decays = [variants[name].weight_decay for name in ("decay 0.5", "decay 2")]
    own = [
        None if low is None else (low * high) ** 0.5
        for low, high in zip(*decays, strict=True)
    ]
    unchanged = variants[UNCHANGED]
    tried = [unchanged, unchanged._replace(weight_decay=own), variants["decay 2"]]
    losses = measured(BASE, tried).validation
    assert losses[1].tolist() == pytest.approx(losses[0].tolist(), rel=1e-6)
    assert losses[2].tolist() != pytest.approx(losses[0].tolist(), rel=1e-6)


def test_gains_of_changes_and_their_bound():
    record = {
        "first": [2.0, 2.0],
        "variants": [UNCHANGED, "output 0.5", "output 2"],
        "validation": [[1.0, 1.0], [0.9, 1.1], [0.5, 0.8]],
    }
    gains = gains_of(record)
    assert gains[UNCHANGED].tolist() == [0, 0]
    assert gains["output 0.5"] == pytest.approx([0.105, -0.095], abs=1e-3)
    (row,) = compared([gains])
    assert row["change of"] == "output"
    assert row["x 2"] == row["bound"] == "45.6 +- 0.0"  # twice is best with both seeds
