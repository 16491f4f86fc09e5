import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.soap.config import SoapConfig
from tests.ngopt.soap.test_soap import PLAIN_STEPS

PLAIN = SoapConfig(step_size=0.02, epsilon=0.0, **PLAIN_STEPS)


class TestHorizon:
    def slope(self, steps, total_steps=None, scheduler=None):
        """Step sizes of a bias whose gradient is always one, so that its direction
        is one."""
        p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        opt = NGOptimizer([p], scale=0.5, total_steps=total_steps, rule=PLAIN)
        schedule = None if scheduler is None else scheduler(opt)
        found = []
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            before = p.detach().clone()
            rate = opt.param_groups[0]["lr"]
            opt.step()
            if schedule is not None:
                schedule.step()
            found.append(((before - p.detach())[0].item(), rate))
        return found

    def test_with_one_and_past_it(self):
        message = "step 22 exceeds total_steps=20"
        with pytest.warns(UserWarning, match=message) as caught:
            found = self.slope(60, 20)
        assert [warning.filename for warning in caught] == [__file__]
        t = np.arange(60) + 1
        expected = 0.5 * 0.02 * np.minimum(1, t / 1.6) * (1 - np.minimum(t, 20) / 21)
        np.testing.assert_allclose([step for step, _ in found], expected, rtol=1e-5)

    def test_one_step_past_it_warns_of_nothing(self):
        """As of loops that count from 0 to the last step."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.slope(21, 20)

    @pytest.mark.parametrize("total_steps", [None, 10])
    def test_a_scheduler_replaces_the_schedule(self, total_steps):
        """Others: tests/ngopt/optimizer/test_learning_rates.py."""

        def scheduler(opt):
            return torch.optim.lr_scheduler.OneCycleLR(opt, 1.0, total_steps=12)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self.slope(10, total_steps, scheduler)
        assert len({rate for _, rate in found}) > 3
        expected = [0.5 * 0.02 * rate for _, rate in found]
        np.testing.assert_allclose([step for step, _ in found], expected, rtol=1e-5)


class TestAverages:
    def trained(self, steps=8, **settings):
        p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        opt = NGOptimizer([p], **settings)
        average = torch.zeros(2, dtype=torch.float64)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            p.grad = torch.randn(2, generator=generator).double()
            opt.step()
            share = 11 / (step + 11)
            average = (1 - share) * average + share * p.detach()
        return p, opt, average

    def test_within_and_for_good(self):
        p, opt, average = self.trained()
        last = p.detach().clone()
        assert (average - last).abs().max() > 1e-4
        with opt.averaged():
            torch.testing.assert_close(p.detach(), average)
        assert torch.equal(p, last)
        with pytest.raises(RuntimeError, match="within"), opt.averaged():
            raise RuntimeError("within")
        assert torch.equal(p, last)
        opt.load_average()
        torch.testing.assert_close(p.detach(), average)

    def test_evaluating_in_between_changes_no_training(self):
        (p, opt, _), (q, other, _) = self.trained(), self.trained()
        with opt.averaged():
            pass
        for x, o in ((p, opt), (q, other)):
            x.grad = torch.ones_like(x)
            o.step()
        assert torch.equal(p, q)
        assert torch.equal(opt.state[p]["average"], other.state[q]["average"])

    def test_with_a_horizon_nothing_is_averaged(self):
        p, opt, _ = self.trained(total_steps=8)
        last = p.detach().clone()
        with opt.averaged():
            assert torch.equal(p, last)
        opt.load_average()
        assert torch.equal(p, last)
        assert "average" not in opt.state[p]

    def test_before_the_first_step_and_of_complex_and_half_ones(self):
        dtypes = torch.complex64, torch.bfloat16
        params = [nn.Parameter(torch.ones(2, dtype=x)) for x in dtypes]
        opt = NGOptimizer(params)
        with opt.averaged():
            assert all(torch.equal(p, torch.ones_like(p)) for p in params)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            opt.step()
        last = [p.detach().clone() for p in params]
        averages = [opt.state[p]["average"].clone() for p in params]
        with opt.averaged():
            for p, average in zip(params, averages, strict=True):
                real = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
                assert torch.equal(real, average.to(real.dtype))
        assert all(torch.equal(p, b) for p, b in zip(params, last, strict=True))
