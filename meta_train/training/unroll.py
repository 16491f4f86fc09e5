"""Inner training as pure functions of parameters, buffers and optimizer state."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map, tree_map_only

from harness.random import derive_seed, seeded
from meta_train.problems import Metrics, Problem
from meta_train.training.rules import Function
from ngopt import build_graph
from ngopt.functional import BoundRule, Hyper, Record, update_all
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

Buffers = dict[str, Tensor]
Tree = TypeVar("Tree")  # a pytree of tensors


class Inner(NamedTuple):
    """The state of an inner run.

    state: of the optimizer. step: number of steps done, (), int64, on the host. In a
    stack all values have a leading axis of optimizees.
    """

    params: list[Tensor]
    buffers: Buffers
    state: list[Record]
    step: Tensor


def channels_last(values: Any) -> Any:
    """A pytree with its 4-dimensional tensors in channels-last format.

    Convolutions of most problems then take .65 to .95 of the time.
    """

    def one(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    return tree_map_only(Tensor, one, values)


class ChannelsLast(TorchFunctionMode):
    """Computes adaptive average pooling as a sum, to keep gradients in channels-last.

    The gradient of torch's pooling is contiguous, and operations on both formats take
    ten times as long.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            maps = args[0]
            return maps.sum((-2, -1), keepdim=True) / maps.shape[-2:].numel()
        return func(*args, **(kwargs or {}))


class Optimizee:
    """A problem with a seed, which fixes initial weights, batches and dropout.

    autocast: compute the loss in bfloat16 where torch.autocast does. names: of its
    parameters.
    """

    count: tuple[int, ...] = ()

    def __init__(
        self,
        problem: Problem,
        seed: int,
        autocast: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.problem = problem
        self.seed = seed
        self.autocast = autocast
        self.device = torch.device(device)
        self.model = problem.init(seed).to(self.device)
        self.graph = build_graph(self.model)
        self.names = [name for name, _ in self.model.named_parameters()]
        self._objective = Function(partial(problem.loss, self.model), self.model)
        # convolutions are faster there with channels last
        is_convolutional = any(p.dim() == 4 for p in self.model.parameters())
        self._has_channels_last = is_convolutional and self.device.type == "cpu"

    def start(self, rule: BoundRule) -> Inner:
        """The inner run before its first step."""
        params = [p.detach().clone() for p in self.model.parameters()]
        buffers = {}
        for name, buffer in self.model.named_buffers():
            buffers[name] = buffer.detach().clone()
        step = torch.zeros((), dtype=torch.int64)
        return Inner(params, buffers, rule.init(params), step)

    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        """Training loss at an inner step, (*count), and new buffers."""
        batch = to_device(self.problem.batch(self.seed, int(step)), self.device)
        layout = nullcontext()
        if self._has_channels_last:
            params, batch = channels_last((params, batch))
            layout = ChannelsLast()
        with seeded(self.seed, 2, int(step)), layout:  # for dropout
            return self.loss_of(params, buffers, batch)

    def loss_of(
        self, params: Sequence[Tensor], buffers: Buffers, batch: Any
    ) -> tuple[Tensor, Buffers]:
        """`loss` with all arguments that differ between optimizees of a stack."""
        buffers = {name: b.clone() for name, b in buffers.items()}
        named = dict(zip(self.names, params, strict=True))
        tensors = {f"module.{name}": x for name, x in (named | buffers).items()}
        precision = nullcontext()
        if self.autocast:
            precision = torch.autocast(self.device.type, torch.bfloat16)
        with precision:
            loss = functional_call(self._objective, tensors, (batch,))
        return loss.float() if self.autocast else loss, buffers

    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of an inner step, (*count, size)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 8, int(step)))
        noise = torch.randn(size, generator=generator, dtype=dtype)
        return to_device(noise, self.device)

    def model_at(self, inner: Inner) -> nn.Module:
        """The module with the current parameters and buffers, in evaluation mode."""
        model = copy.deepcopy(self.model)
        params = dict(zip(self.names, inner.params, strict=True))
        model.load_state_dict(params | inner.buffers, strict=False)
        return model.eval()


class Stack:
    """Optimizees of one problem with equal shapes as one, to keep a GPU busy.

    Values have a leading axis of optimizees, of length `count`, (n,). All have the
    neural graph and the names of the first.

    Losses and gradients are those of the optimizees to rounding, except with dropout:
    one generator draws for all.

    Raises ValueError for recurrent networks.
    """

    def __init__(self, optimizees: Sequence[Optimizee]):
        first = optimizees[0]
        for name, module in first.model.named_modules():
            if isinstance(module, nn.RNNBase):
                raise ValueError(
                    f"Stack: problem '{first.problem.name}': expected no recurrent "
                    f"layers, which vmap does not support; got '{name}'"
                )
        self.optimizees = optimizees
        self.count = (len(optimizees),)
        self.graph = first.graph
        self.names = first.names
        self._first = first

    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        steps = torch.as_tensor(step).expand(self.count).tolist()
        batches = []
        for optimizee, number in zip(self.optimizees, steps, strict=True):
            batches.append(optimizee.problem.batch(optimizee.seed, number))
        batch = to_device(stacked(batches), self._first.device)
        losses_of = torch.vmap(self._first.loss_of, randomness="different")
        with seeded(self._first.seed, 2, steps[0]):
            return losses_of(list(params), buffers, batch)

    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        draws = []
        for optimizee, number in zip(self.optimizees, step, strict=True):
            draws.append(optimizee.normal(number, size, dtype))
        return torch.stack(draws)


Optimizees = Optimizee | Stack


def inner_gradient(
    optimizee: Optimizees, inner: Inner, create_graph: bool = False
) -> tuple[Tensor, list[Tensor | None], Buffers]:
    """Loss, gradients (None for unused parameters) and new buffers."""
    params = []
    for p in inner.params:
        is_leaf = not (create_graph and p.requires_grad)
        params.append(p.detach().requires_grad_() if is_leaf else p)
    # fused attention kernels have no second derivatives
    kernels = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    with torch.enable_grad(), kernels:
        loss, buffers = optimizee.loss(params, inner.buffers, inner.step)
        # optimizees of a stack are independent
        grads = torch.autograd.grad(
            loss.sum(), params, create_graph=create_graph, allow_unused=True
        )
    # with the memory layout of the state
    grads = [None if grad is None else grad.contiguous() for grad in grads]
    return loss if create_graph else loss.detach(), grads, buffers


def hyper_of(optimizee: Optimizees) -> Hyper:
    """The learning rate 1, and the weight decay of the rule."""
    count = len(optimizee.names)
    return Hyper([1.0] * count, [None] * count)


def stacked(trees: Sequence[Tree]) -> Tree:
    """Stacks pytrees of tensors along a new first axis."""
    return tree_map(lambda *values: torch.stack(values), *trees)


def unstacked(tree: Tree, count: int) -> list[Tree]:
    """The inverse of `stacked`."""
    return [tree_map(lambda values, i=i: values[i], tree) for i in range(count)]


def moved(
    inner: Inner, deltas: Sequence[Tensor | None], state: list[Record], buffers: Buffers
) -> Inner:
    """The inner run after an update."""
    params = []
    for p, delta in zip(inner.params, deltas, strict=True):
        params.append(p if delta is None else p + delta)
    return Inner(params, buffers, state, inner.step + 1)


def unroll(
    optimizee: Optimizees,
    inner: Inner,
    rule: BoundRule,
    steps: int,
    create_graph: bool = False,
) -> tuple[Inner, Tensor]:
    """Trains for some steps. Returns the state, and the losses before each update.

    Losses are (steps, *count). With `create_graph` everything is differentiable by the
    metanet's weights, through the optimizee's gradients too (second order).
    """
    losses, hyper = [], hyper_of(optimizee)
    with torch.set_grad_enabled(create_graph):
        for _ in range(steps):
            loss, grads, buffers = inner_gradient(optimizee, inner, create_graph)
            deltas, state = update_all(rule, grads, inner.state, inner.params, hyper)
            inner = moved(inner, deltas, state, buffers)
            losses.append(loss)
    return inner, torch.stack(losses)


def whole_run(optimizee: Optimizee, learned: LearnedOptimizer, steps: int) -> Metrics:
    """Validation metrics after a whole inner run."""
    rule = learned.bind(optimizee.graph, steps)
    inner, _ = unroll(optimizee, optimizee.start(rule), rule, steps)
    return optimizee.problem.evaluate(optimizee.model_at(inner), "validation")


def to_device(values: Tree, device: torch.device) -> Tree:
    """The tensors of a pytree, copied from the host to a device without a host sync."""

    def move(x: Tensor) -> Tensor:
        x = x.pin_memory() if device.type == "cuda" else x
        return x.to(device, non_blocking=True)

    return tree_map_only(Tensor, move, values)
