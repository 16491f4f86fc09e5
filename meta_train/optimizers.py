"""The optimizers that are compared: baselines with a grid of learning rates, and learned ones."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ngopt import NGOptimizer, list_pretrained, load_pretrained
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import weights_hash

Built = tuple[Optimizer, LRScheduler | None]

WARMUP = 0.05  # share of the steps; without it Adam is unstable at its best rates (fm-16 at .04)
WEIGHT_DECAY = 0.1  # of AdamW, as most recipes for transformers have it

# Behind the name of weights.
TRACED, BFLOAT16, OPEN = OPTIONS = ":traced", ":bfloat16", ":open"
# Muon's author leaves them to Adam; on gpt-text that is .1 better than Muon on all matrices.
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

# Grids are spaced by two or three, about as finely as people tune; the short horizons of most
# problems want high rates, SIRENs low ones.
ADAM_LRS = (0.001, 0.003, 0.006, 0.01, 0.02, 0.04, 0.08)
MUON_LRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SOAP_LRS = (0.003, 0.01, 0.02, 0.04, 0.08)
SCHEDULE_FREE_LRS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class OptimizerSpec:
    """How an optimizer is made, and what there is to tune.

    make: (model, lr, total_steps) -> the optimizer, and the scheduler (or None) to step after it.
    lrs: the learning rates to choose from, ascending; empty if there is nothing to tune.
    lr: the learning rate where there is nothing to tune.
    weights: SHA-256 of a learned optimizer's weights, else None.
    """

    name: str
    make: Callable[[nn.Module, float, int], Built]
    lrs: tuple[float, ...] = ()
    lr: float = 1.0
    weights: str | None = None

    def build(self, model: nn.Module, lr: float | None, total_steps: int) -> Built:
        """The optimizer, and the scheduler (or None) to step after it.

        Raises ValueError if one that has to be tuned is given no learning rate.
        """
        if lr is None and self.lrs:
            grid = ", ".join(map(str, self.lrs))
            message = f"optimizer '{self.name}': expected a learning rate, such as {grid}; got None"
            raise ValueError(message)
        return self.make(model, self.lr if lr is None else lr, total_steps)

    def refusal(self, model: nn.Module) -> str | None:
        """Why it cannot train a network; None if it can."""
        if self.weights is None:
            return None
        optimizer, _ = self.build(model, None, 1)
        assert isinstance(optimizer, NGOptimizer)
        metanet = optimizer.learned.metanet
        try:
            if metanet is not None:
                metanet.check(optimizer.graph)
        except ValueError as error:
            return str(error)
        return None


class MuonWithAdam(Optimizer):
    """Muon on parameters with two or more dimensions, Adam on the others; no weight decay.

    with_adam: parameters that Adam takes whatever their dimensions, such as embeddings.

    `torch.optim.Muon` takes matrices only, so it is given views of the kernels, (out, in * k * k):
    what it does to a view in place, it does to the kernel. Both parts use the same learning rate.
    Made for comparisons: `state_dict` leaves out the momenta, so it cannot resume.

    Raises ValueError if a kernel is not contiguous, since then it has no such view.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        with_adam: Iterable[Tensor] = (),
    ):
        super().__init__(params, {"lr": lr})
        members = self.param_groups[0]["params"]
        excepted = set(with_adam)
        self._kernels = [p for p in members if p.ndim >= 2 and p not in excepted]
        for p in self._kernels:
            if not p.is_contiguous():
                raise ValueError(
                    f"MuonWithAdam: expected contiguous kernels; got strides {p.stride()} of "
                    f"{tuple(p.shape)}"
                )
        self._matrices = [p.detach().view(len(p), -1) for p in self._kernels]
        others = [p for p in members if p.ndim < 2 or p in excepted]
        self._parts: list[Optimizer] = []
        if self._matrices:
            self._parts.append(torch.optim.Muon(self._matrices, lr, weight_decay=0.0))
        if others:
            self._parts.append(torch.optim.Adam(others, lr))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part in self._parts:
            part.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            part.step()


def cosine_schedule(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.0
) -> LambdaLR:
    """Linear warm-up over a share of the steps,
    then half a cosine from the full learning rate to 0."""
    first = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + cos(pi * (step - first) / (total_steps - first)))

    return LambdaLR(optimizer, factor)


def load_optimizer(name: str) -> OptimizerSpec:
    """A baseline of `OPTIMIZERS`, or the learned optimizer of bundled weights or of a weights file.

    name: of the weights, or the path of the file. With ":traced" behind it, the optimizer follows
    the model's first forward; else it infers the graph from names and shapes. With ":bfloat16" its
    metanet computes in that. With ":open" it is not told how long the training is. Several may
    follow each other.

    Raises ValueError if there is none of that name, if the weights cannot be loaded, or for ":open"
    with a base rule, which then trains other weights than it should be judged by.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    weights, options = _without_options(name)
    bundled = list_pretrained()
    if weights not in ("default", *bundled) and not Path(weights).is_file():
        known = ", ".join([*OPTIMIZERS, "default", *bundled])
        raise ValueError(
            f"optimizer '{name}': expected one of {known}, or the path of an existing weights file"
        )
    learned = load_pretrained(weights)
    if OPEN in options and learned.base is not None:
        raise ValueError(
            f"optimizer '{name}': expected weights without a base rule; got '{learned.base.name}'"
        )
    make = partial(_learned, learned, options)
    return OptimizerSpec(name, make, weights=weights_hash(learned))


def _without_options(name: str) -> tuple[str, set[str]]:
    """What is before the options at the end of a name, and these."""
    options: set[str] = set()
    while found := [option for option in OPTIONS if name.endswith(option)]:
        options |= {*found}
        name = name.removesuffix(found[0])
    return name, options


def _adam(model: nn.Module, lr: float, total_steps: int) -> Built:
    return torch.optim.Adam(model.parameters(), lr), None


def _adam_cosine(model: nn.Module, lr: float, total_steps: int) -> Built:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)


def _adamw_cosine(model: nn.Module, lr: float, total_steps: int) -> Built:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY)
    return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)


def _schedule_free(model: nn.Module, lr: float, total_steps: int) -> Built:
    """AdamW without a schedule (Defazio et al. 2024), which averages its weights instead.

    Its weights are those to train with; `eval()` puts the average in their place.
    """
    from schedulefree import AdamWScheduleFree

    warmup = round(WARMUP * total_steps)
    optimizer = AdamWScheduleFree(model.parameters(), lr, warmup_steps=warmup)
    optimizer.train()
    return optimizer, None


def _muon_cosine(model: nn.Module, lr: float, total_steps: int) -> Built:
    tables = (module for module in model.modules() if isinstance(module, EMBEDDINGS))
    embeddings = [parameter for table in tables for parameter in table.parameters()]
    optimizer = MuonWithAdam(model.parameters(), lr, embeddings)
    return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)


def _soap_cosine(kind: str, model: nn.Module, lr: float, total_steps: int) -> Built:
    """heavyball's SOAP or KLSOAP with its defaults: a new basis every second step, decay .01.

    Not compiled: on small networks and a CPU, compiling takes longer than the whole run.
    """
    # two seconds, which only these two need
    heavyball = importlib.import_module("heavyball")
    heavyball.utils.compile_mode = None
    # Said of every scheduler; the rate is read from the group at each step.
    warnings.filterwarnings(
        "ignore", "Learning rate changed between steps", UserWarning
    )
    optimizer = getattr(heavyball, kind)(model.parameters(), lr=lr)
    return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)


def _learned(
    learned: LearnedOptimizer,
    options: Collection[str],
    model: nn.Module,
    lr: float,
    total_steps: int,
) -> Built:
    optimizer = NGOptimizer(
        model.parameters(),
        lr,
        weights=learned,
        total_steps=None if OPEN in options else total_steps,
        model=model if TRACED in options else None,
        compute_dtype=torch.bfloat16 if BFLOAT16 in options else None,
    )
    return optimizer, None


OPTIMIZERS = {
    spec.name: spec
    for spec in (
        OptimizerSpec("adam", _adam, ADAM_LRS),
        OptimizerSpec("adam-cosine", _adam_cosine, ADAM_LRS),
        OptimizerSpec("adamw-cosine", _adamw_cosine, ADAM_LRS),
        OptimizerSpec("schedule-free", _schedule_free, SCHEDULE_FREE_LRS),
        OptimizerSpec("muon-cosine", _muon_cosine, MUON_LRS),
        OptimizerSpec("soap-cosine", partial(_soap_cosine, "SOAP"), SOAP_LRS),
        OptimizerSpec("kl-soap-cosine", partial(_soap_cosine, "KLSOAP"), SOAP_LRS),
        OptimizerSpec("adam-default", _adam, lr=0.001),  # torch's
        OptimizerSpec("muon-default", _muon_cosine, lr=0.02),  # its author's
    )
}
