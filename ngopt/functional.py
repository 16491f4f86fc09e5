"""The optimizer as two pure functions: `init` makes a state, `update` maps gradients to deltas.

`NGOptimizer.step` calls `update` without an autograd graph, unrolls call the same with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.features import DECAYS, preprocess, update_momenta
from ngopt.graph.core import NeuralGraph
from ngopt.models.metanet import Metanet


class State(NamedTuple):
    """State of an optimizer.

    step: per parameter, the number of updates so far, () float32.
    exp_avgs: per parameter, one momentum for each decay, of the parameter's shape, float32 (float64
        for float64 parameters).
    """

    step: list[Tensor]
    exp_avgs: list[list[Tensor]]


class Hyper(NamedTuple):
    """Per parameter: `lr` multiplies the learned update; `weight_decay` is decoupled, in AdamW's units."""

    lr: Sequence[float]
    weight_decay: Sequence[float]


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def init(params: Sequence[Tensor], graph: NeuralGraph, metanet: Metanet) -> State:
    """The state before the first update: all zeros."""
    return State(*map(list, zip(*(init_parameter(p) for p in params), strict=True)))


def init_parameter(param: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One parameter's part of the initial state: step and momenta."""
    zeros = [torch.zeros_like(param, dtype=state_dtype(param), requires_grad=False) for _ in DECAYS]
    return torch.zeros((), dtype=torch.float32), zeros


def update(
    grads: Sequence[Tensor | None],
    state: State,
    params: Sequence[Tensor],
    graph: NeuralGraph,
    metanet: Metanet,
    hyper: Hyper,
) -> tuple[list[Tensor | None], State]:
    """One step of the optimizer: p <- p + delta, delta = lr * u - lr * s * weight_decay * p.

    u is the metanet's prediction and s its nominal step (`config.nominal_step`), so that
    `weight_decay` has AdamW's units. A parameter whose gradient is None is absent: its delta is
    None, its state stands still and its features are zero.

    grads, params: in the order of `graph.parameters`. Returns deltas in the dtype of the state, and
    the new state; nothing is changed in place.
    """
    momenta = [old if g is None else update_momenta(old, g) for g, old in zip(grads, state.exp_avgs, strict=True)]
    steps = [old if g is None else old + 1 for g, old in zip(grads, state.step, strict=True)]
    updates = graph.unflatten(metanet(_features(grads, params, momenta, graph, metanet), graph))
    deltas: list[Tensor | None] = []
    for g, p, u, lr, decay in zip(grads, params, updates, hyper.lr, hyper.weight_decay, strict=True):
        delta = None
        if g is not None:
            delta = lr * u.to(device=p.device, dtype=state_dtype(p))
            if decay:
                delta = delta - lr * metanet.config.nominal_step * decay * p
        deltas.append(delta)
    return deltas, State(steps, momenta)


def _features(
    grads: Sequence[Tensor | None],
    params: Sequence[Tensor],
    momenta: Sequence[Sequence[Tensor]],
    graph: NeuralGraph,
    metanet: Metanet,
) -> Tensor:
    """Weight, gradient and momenta of every parameter, preprocessed: (numel, 14); zeros where absent."""
    like = next(metanet.parameters())
    columns = [
        graph.flatten([x.to(like) for x in column])
        for column in zip(
            *(_raw_features(g, p, m) for g, p, m in zip(grads, params, momenta, strict=True)), strict=True
        )
    ]
    features = preprocess(torch.stack(columns, dim=-1))
    if all(g is not None for g in grads):
        return features
    present = [torch.full_like(p, g is not None, dtype=features.dtype) for g, p in zip(grads, params, strict=True)]
    return features * graph.flatten(present).to(features.device).unsqueeze(-1)


def _raw_features(grad: Tensor | None, param: Tensor, momenta: Sequence[Tensor]) -> list[Tensor]:
    if grad is None:
        return [torch.zeros_like(param)] * (2 + len(DECAYS))
    return [param, grad, *momenta]
