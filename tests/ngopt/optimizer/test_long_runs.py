import copy
import functools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer
from tests.networks import mlp
from tests.ngopt.optimizer.test_unusual_use import classes, small_mlp, train, train_step


class TestLongRuns:
    def run(self, opt_of, steps):
        """Mean losses of every 100 steps, divided by that of chance, and the final norm
        of the weights."""
        torch.manual_seed(0)
        model = mlp(64, *[32] * 19, 10)
        opt = opt_of(model.parameters())
        losses = torch.zeros(steps)
        inputs, labels = classes(0, steps, (64,))
        for step in range(steps):
            one = slice(step, step + 1)
            loss = F.cross_entropy(model(inputs[one]), labels[one])
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses[step] = loss.item()
        assert losses.isfinite().all()
        norm = torch.stack([p.detach().norm() for p in model.parameters()]).norm()
        return losses.view(-1, 100).mean(1) / np.log(10), norm

    @pytest.mark.parametrize(
        "steps",
        [300, *(pytest.param(n, marks=pytest.mark.thorough) for n in (3_000, 10_000))],
    )
    def test_twenty_layers_batches_of_one(self, steps):
        losses, norm = self.run(NGOptimizer, steps)
        assert losses.max() < 3
        adamw = functools.partial(torch.optim.AdamW, lr=1e-3, fused=True)
        _, adamw_norm = self.run(adamw, steps)
        assert norm < 2 * adamw_norm

    @pytest.mark.parametrize(
        "steps", [400, pytest.param(3_000, marks=pytest.mark.thorough)]
    )
    def test_a_transformer(self, steps):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        model = nn.Sequential(nn.Embedding(7, 8), layer, nn.Linear(8, 7))
        opt = NGOptimizer(model.parameters(), model=model)
        losses = []
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(7, (4, 6), generator=generator)
            target = (tokens + tokens.roll(1, 1)) % 7
            loss = F.cross_entropy(model(tokens).flatten(0, 1), target.flatten())
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert max(losses) < 3 * losses[0]
        assert np.mean(losses[-100:]) < losses[0]
        assert all(p.isfinite().all() for p in model.parameters())


class TestBeginnings:
    def test_nothing_random_is_drawn(self):
        def states():
            of_numpy = np.random.get_state()[1].tolist()
            return torch.get_rng_state(), random.getstate(), of_numpy

        model = small_mlp()
        before = states()
        opt = NGOptimizer(model.parameters(), model=model)
        train_step(model, opt, 0, 4)
        after = states()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]

    def test_adapters_that_begin_with_zero(self):
        """LoRA: the gradient of A is zero at the first step, as B is."""

        class Adapted(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = nn.Linear(16, 10).requires_grad_(False)
                self.a = nn.Parameter(torch.randn(4, 16) / 4)
                self.b = nn.Parameter(torch.zeros(10, 4))

            def forward(self, x):
                return self.base(x) + x @ self.a.T @ self.b.T

        losses = {}
        for rule in ("default", "AdamW"):
            torch.manual_seed(0)
            model = Adapted()
            params = [p for p in model.parameters() if p.requires_grad]
            opt = NGOptimizer(params)
            if rule == "AdamW":
                opt = torch.optim.AdamW(params, 1e-2)
            start = nn.Parameter(model.a.detach().clone())
            for t in range(100):
                losses[rule] = train_step(model, opt, t)
                if t == 0:
                    assert 0 < model.b.abs().max() < 0.1
                    # but for decay
                    torch.testing.assert_close(model.a, start, rtol=1e-3, atol=0)
                if t == 1:
                    assert (model.a - start).abs().max() > 1e-4
        assert losses["default"] < 1.2 * losses["AdamW"]

    def test_an_output_that_begins_with_zero(self):
        model = small_mlp()
        with torch.no_grad():
            model[-1].weight.zero_()
        losses = train(lambda: model, 100, shape=(16,))
        expected = train(small_mlp, 100)
        assert max(losses) < 3 * losses[0]
        assert np.mean(losses[-10:]) < 1.3 * np.mean(expected[-10:])

    def test_counts_of_skipped_steps_are_part_of_the_state(self):
        model = small_mlp()
        opt = NGOptimizer(model.parameters())
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan"))
        opt.step()
        other = NGOptimizer(copy.deepcopy(model).parameters())
        other.load_state_dict(opt.state_dict())
        assert all(record["skipped"] == 1 for record in other.state.values())
