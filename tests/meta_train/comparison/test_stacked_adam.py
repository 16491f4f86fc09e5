import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map

from meta_train.comparison.stacked_adam import lr_factor, train_copies
from meta_train.problems import load_problem
from meta_train.problems.supervised import SupervisedProblem

STEPS = 12
SETTINGS = (0.01, 0.9), (0.003, 0.8)


class InFloat64(SupervisedProblem):
    """A problem in float64: SIRENs magnify rounding with every step."""

    def init(self, seed):
        return super().init(seed).double()

    def batch(self, seed, step):
        return tree_map(torch.Tensor.double, super().batch(seed, step))


@pytest.mark.parametrize("name", ["gelu-sines", "siren-chirps", "solver-heat"])
def test_every_copy_is_trained_as_by_torch(name):
    problem = InFloat64(**vars(load_problem(name)))
    batch = problem.batch(1, 0)
    curves = train_copies(problem, 1, SETTINGS, STEPS)
    assert curves.shape == (STEPS + 1, 2)
    for (lr, beta1), losses in zip(SETTINGS, curves.mT, strict=True):
        model = problem.init(1)
        optimizer = torch.optim.Adam(model.parameters(), lr, (beta1, 0.999))
        scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, STEPS))
        expected = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            expected.append(loss.detach())
            loss.backward()
            optimizer.step()
            scheduler.step()
        expected.append(problem.loss(model, batch).detach())
        torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-3, atol=0)


def test_diverging_copies_leave_the_others_alone():
    problem = load_problem("gelu-sines")
    (alone,) = train_copies(problem, 0, SETTINGS[:1], STEPS)[-1]
    settings = [SETTINGS[0], (1e30, 0.9)]
    beside, diverged = train_copies(problem, 0, settings, STEPS)[-1]
    torch.testing.assert_close(beside, alone)
    assert not diverged.isfinite()


def test_the_rate_rises_then_falls_to_zero():
    factors = [lr_factor(step, 100) for step in range(100)]
    assert factors[0] == 0.5
    assert factors.index(max(factors)) == 1
    assert factors[50] == 0.5
    assert factors[99] == pytest.approx(0.01)
