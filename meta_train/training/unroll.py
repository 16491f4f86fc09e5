"""Inner training of one optimizee as pure functions of its parameters,
buffers and optimizer state."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from harness.random import derive_seed, seeded
from meta_train.problems import Metrics, Problem
from meta_train.training.channels_last import ChannelsLast, channels_last
from ngopt import build_graph
from ngopt.functional import Hyper, Record, UpdateRule, update_all
from ngopt.graph import NeuralGraph
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

Buffers = dict[str, Tensor]
Tree = TypeVar("Tree")


class Inner(NamedTuple):
    """Where an inner training stands: parameters, buffers, optimizer state, and steps
    done.

    step: (), int64, on the host. In a stack all have an axis of optimizees in front.
    """

    params: list[Tensor]
    buffers: Buffers
    state: list[Record]
    step: Tensor


class Optimizees(ABC):
    """What is unrolled: one optimizee, or several with an axis of them in front of
    every value.

    count: () for one; (n,) in a stack. graph: the neural graph of each. names: of its
    parameters.
    """

    count: tuple[int, ...]
    graph: NeuralGraph
    names: list[str]

    @abstractmethod
    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        """Training loss at an inner step, (*count), and the buffers after it;
        nothing is changed in place."""

    @abstractmethod
    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of an inner step, (*count, size)."""

    def gradient(
        self, inner: Inner, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None], Buffers]:
        """Loss, gradients (None for a parameter without one)
        and new buffers at the current step."""
        params = [
            p if create_graph and p.requires_grad else p.detach().requires_grad_()
            for p in inner.params
        ]
        # of the fused kernels of attention there are no second derivatives
        kernels = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
        with torch.enable_grad(), kernels:
            loss, buffers = self.loss(params, inner.buffers, inner.step)
            # optimizees of a stack do not meet, so the gradient of the sum is that of
            # each
            grads = torch.autograd.grad(
                loss.sum(), params, create_graph=create_graph, allow_unused=True
            )
        # as the state lies, whatever the loss made of its parameters
        grads = [None if grad is None else grad.contiguous() for grad in grads]
        return loss if create_graph else loss.detach(), grads, buffers

    def hyper(self, weight_decay: float = 0.0) -> Hyper:
        """weight_decay: 0 for that of the rule."""
        return Hyper([1.0] * len(self.names), [weight_decay or None] * len(self.names))


class Optimizee(Optimizees):
    """A problem with a seed: fixes initial weights, batches and dropout of one inner
    training.

    autocast: compute the optimizee's loss in bfloat16 where torch deems it safe.
    scaling: each tensor is optimized as a multiple of what the network uses, by a
    factor log-uniform between its inverse and it (Moudgil et al. 2025, Celo2); the
    network starts the same. device: of the optimizee.
    """

    count = ()

    def __init__(
        self,
        problem: Problem,
        seed: int,
        autocast: bool = False,
        scaling: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        self.problem, self.seed, self.autocast = problem, seed, autocast
        self.device = torch.device(device)
        self.model = problem.init(seed).to(self.device)
        self.graph = build_graph(self.model)
        self.names = [name for name, _ in self.model.named_parameters()]
        self._objective = _Objective(problem, self.model)
        self._is_convolutional = self.device.type == "cpu" and any(
            p.dim() == 4 for p in self.model.parameters()
        )
        with seeded(seed, 6):
            exponents = 2 * torch.rand(len(self.names), dtype=torch.float64) - 1
        self.scales = [scaling**e for e in exponents.tolist()]

    def start(self, rule: UpdateRule) -> Inner:
        """The inner training before its first step."""
        rows = zip(self.model.parameters(), self.scales, strict=True)
        params = [p.detach() / s for p, s in rows]
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        return Inner(
            params, buffers, rule.init(params), torch.zeros((), dtype=torch.int64)
        )

    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        batch = self.batch(step)
        layout = nullcontext()
        if self._is_convolutional:
            (params, batch), layout = (channels_last((params, batch)), ChannelsLast())
        with self.randomness(step), layout:
            return self.loss_of(params, buffers, self.scales, batch)

    def loss_of(
        self,
        params: Sequence[Tensor],
        buffers: Buffers,
        scales: Sequence[float | Tensor],
        batch: Any,
    ) -> tuple[Tensor, Buffers]:
        """`loss` as a function of all that differs between optimizees on one network."""
        buffers = {name: b.clone() for name, b in buffers.items()}
        used = zip(self.names, _used(params, scales), strict=True)
        tensors = {f"model.{n}": t for n, t in [*used, *buffers.items()]}
        precision = nullcontext()
        if self.autocast:
            precision = torch.autocast(self.device.type, torch.bfloat16)
        with precision:
            loss = functional_call(self._objective, tensors, (batch,))
        return loss.float() if self.autocast else loss, buffers

    def batch(self, step: int | Tensor) -> Any:
        """The training batch of an inner step, where the optimizee is."""
        return sent(self.host_batch(step), self.device)

    def host_batch(self, step: int | Tensor) -> Any:
        """The same on the host."""
        return self.problem.batch(self.seed, int(step))

    def randomness(self, step: int | Tensor) -> AbstractContextManager[None]:
        """In which dropout draws what it draws at an inner step."""
        return seeded(self.seed, 2, int(step))

    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 8, int(step)))
        noise = torch.randn(size, generator=generator, dtype=dtype)
        return sent(noise, self.device)

    def model_at(self, inner: Inner) -> nn.Module:
        """The module with an inner training's parameters and buffers, in evaluation
        mode."""
        model = copy.deepcopy(self.model)
        used = dict(zip(self.names, _used(inner.params, self.scales), strict=True))
        model.load_state_dict({**used, **inner.buffers}, strict=False)
        return model.eval()


def apply_update(
    inner: Inner,
    grads: list[Tensor | None],
    buffers: Buffers,
    rule: UpdateRule,
    hyper: Hyper,
) -> Inner:
    """The inner training one step later."""
    deltas, state = update_all(rule, grads, inner.state, inner.params, hyper)
    return moved(inner, deltas, state, buffers)


def moved(
    inner: Inner, deltas: Sequence[Tensor | None], state: list[Record], buffers: Buffers
) -> Inner:
    """The inner training after an update."""
    params = [
        p if d is None else p + d for p, d in zip(inner.params, deltas, strict=True)
    ]
    return Inner(params, buffers, state, inner.step + 1)


def unroll(
    optimizee: Optimizees,
    inner: Inner,
    rule: UpdateRule,
    steps: int,
    hyper: Hyper,
    create_graph: bool = False,
) -> tuple[Inner, Tensor]:
    """Trains for some steps; returns where it stands and the losses before each update,
    (steps, *count).

    With `create_graph` everything stays differentiable in the rule's metanet, through
    the optimizee's gradients too (second order).
    """
    losses = []
    with torch.set_grad_enabled(create_graph):
        for _ in range(steps):
            loss, grads, buffers = optimizee.gradient(inner, create_graph)
            inner = apply_update(inner, grads, buffers, rule, hyper)
            losses.append(loss)
    return inner, torch.stack(losses)


def whole_run(
    optimizee: Optimizee,
    learned: LearnedOptimizer,
    steps: int,
    weight_decay: float = 0.0,
) -> Metrics:
    """Validation metrics after a whole inner training."""
    rule = learned.bind(optimizee.graph, steps)
    inner, _ = unroll(
        optimizee, optimizee.start(rule), rule, steps, optimizee.hyper(weight_decay)
    )
    return optimizee.problem.evaluate(optimizee.model_at(inner), "validation")


def sent(values: Tree, device: torch.device) -> Tree:
    """The tensors of a pytree, copied from the host to a device without a host sync."""

    def one(x: Tensor) -> Tensor:
        x = x.pin_memory() if device.type == "cuda" else x
        return x.to(device, non_blocking=True)

    return tree_map_only(Tensor, one, values)


def _used(params: Sequence[Tensor], scales: Sequence[float | Tensor]) -> list[Tensor]:
    """What the network uses."""
    rows = zip(params, scales, strict=True)
    return [p if isinstance(s, float) and s == 1 else s * p for p, s in rows]


class _Objective(nn.Module):
    """A problem's loss as a module, so that `functional_call` can put other parameters
    under it."""

    def __init__(self, problem: Problem, model: nn.Module):
        super().__init__()
        self._problem, self.model = problem, model

    def forward(self, batch: Any) -> Tensor:
        return self._problem.loss(self.model, batch)
