"""A rule small enough to be worked out by hand: decayed momentum along the horizon."""

from dataclasses import dataclass

import torch

from ngopt.functional import BoundRule, Change, UpdateRule, state_dtype


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """p <- p - lr * size * (1 - t / total_steps) * m.

    The record has a tensor of the parameter's shape, one of another shape and a count
    in int64.
    """

    size: float = 0.1
    decay: float = 0.9

    def bind(self, graph, total_steps=None, **options):
        return BoundMomentum(self, total_steps)


@dataclass
class BoundMomentum(BoundRule):
    rule: Momentum
    total_steps: int | None

    def init(self, params):
        return [
            {
                "count": torch.zeros((), dtype=torch.int64),
                "average": torch.zeros_like(x),
                "size": x.square().mean().sqrt().expand(2).clone(),
            }
            for x in (p.detach().to(state_dtype(p)) for p in params)
        ]

    def update(self, grads, state, params, hyper, in_place=False):
        for i, (g, old) in enumerate(zip(grads, state, strict=True)):
            if g is None:
                continue
            g = g.to(old["average"].dtype)
            average = old["average"].lerp(g, 1 - self.rule.decay)
            left = 1.0
            if self.total_steps is not None:
                left = 1 - old["count"] / self.total_steps
            delta = -hyper.lr[i] * self.rule.size * left * average
            new = {**old, "count": old["count"] + 1, "average": average}
            yield [Change(i, delta, new)]
