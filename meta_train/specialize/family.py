"""A family of training runs, whose members have networks of equal shapes."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from harness.random import seeded
from meta_train.copies import Copies, LossOf
from ngopt import NGOptimizer
from ngopt.importing import load_object
from ngopt.soap.soap import Soap
from ngopt.specialized.rates import Rates, Shapes
from ngopt.specialized.storage import HandRule

WORST = 5.0  # largest log loss of a run, above that of its first step
LOWEST = 1e-30  # lower losses are equal to it


class Member(NamedTuple):
    """A training run without an optimizer.

    model: with its initial weights. batches: of the training, started again when they
    end. loss: of a network and a batch, a positive scalar.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: LossOf


@dataclass
class Family:
    """Members by seed.

    stacks: whether copies of the network can be trained at once.
    """

    name: str
    make: Callable[[int], Any]
    stacks: bool = True

    def __post_init__(self) -> None:
        self.member = lru_cache(256)(self._member)
        member = self.member(0)
        self.shapes = shapes_of(member.model)
        try:
            train(member, Soap(), 1)
        except RuntimeError as error:
            raise ValueError(
                f"specialize: '{self.name}': expected a loss that is one number, with "
                f"gradients, on the first batch of member(0); torch: {error}"
            ) from error

    def _member(self, seed: int) -> Member:
        """Raises ValueError for other results, and for other shapes than of seed 0."""
        with seeded(seed):
            parts = self.make(seed)
        if not (isinstance(parts, tuple) and len(parts) == len(Member._fields)):
            raise ValueError(
                f"specialize: '{self.name}': expected member({seed}) to return (model, "
                f"batches, loss); got {type(parts).__name__}"
            )
        member = Member(*parts)
        shapes = shapes_of(member.model)
        if seed != 0 and shapes != self.shapes:
            raise ValueError(
                f"specialize: '{self.name}': expected parameters of equal shapes for "
                f"all seeds; got {self.shapes} for seed 0, {shapes} for seed {seed}"
            )
        return member


def shapes_of(model: nn.Module) -> Shapes:
    return tuple(tuple(p.shape) for p in model.parameters())


def load_family(path: str) -> Family:
    """The family in the module "package.module", or in an object of it,
    "package.module:name". Its `member(seed)` returns model, batches and loss.

    Raises ValueError if it cannot be imported or has no such function.
    """
    make = getattr(load_object(path), "member", None)
    if not callable(make):
        raise ValueError(
            f"specialize: expected a function member(seed) in '{path}' that returns "
            "model, batches and loss of a training run, another one for every seed; "
            "got none. Examples are in examples/families."
        )
    return Family(path.replace(":", ".").rpartition(".")[2], make)


def log_losses(
    family: Family,
    seeds: Sequence[int],
    rule: HandRule,
    steps: int,
    rates: Rates | None = None,
) -> Tensor:
    """Logarithms of the mean loss over the last tenth of the steps, (copies,).

    seeds: of the member of each copy; several may have the same. rates: of all
    parameters of the first copy, then of the second, ...

    Raises ValueError for a negative loss, and for a first loss that is zero or not
    finite.
    """
    losses = _losses(family, seeds, rule, steps, rates)
    if (losses < 0).any() or not ((losses[0] > 0) & losses[0].isfinite()).all():
        raise ValueError(
            f"specialize: '{family.name}': expected positive losses, as their "
            f"logarithms are compared; got {losses[0].min():.3g} in the first step; "
            f"the lowest is {losses.min():.3g}. Add a constant if they are negative."
        )
    last = losses[-max(1, steps // 10) :].mean(0).clamp(min=LOWEST).log()
    worst = losses[0].log() + WORST
    return torch.where(last.isfinite(), last, worst).minimum(worst)


def _losses(
    family: Family,
    seeds: Sequence[int],
    rule: HandRule,
    steps: int,
    rates: Rates | None,
) -> Tensor:
    """Of every step and copy, (steps, copies)."""
    if family.stacks:
        try:
            with_rates = replace(rule, multiplier=rates)
            return _stacked(family, seeds, with_rates, steps)
        except RuntimeError as error:  # of vmap
            reason = str(error).partition("\n")[0]
            tqdm.write(f"Networks are trained one after another: {reason}")
            family.stacks = False
    columns, count = [], len(family.shapes)
    for i, seed in enumerate(seeds):
        of_copy = None
        if rates is not None:
            of_copy = rates.of(range(i * count, (i + 1) * count))
        with_rates = replace(rule, multiplier=of_copy)
        columns.append(train(family.member(seed), with_rates, steps))
    return torch.stack(columns, 1)


def _stacked(
    family: Family, seeds: Sequence[int], rule: HandRule, steps: int
) -> Tensor:
    members = {seed: family.member(seed) for seed in seeds}
    loss = members[seeds[0]].loss
    copies = Copies([members[seed].model for seed in seeds], loss, rule, steps)
    streams = {seed: _endless(member.batches) for seed, member in members.items()}
    losses: list[Tensor] = []
    stacked, before = None, []
    for _ in range(steps):
        batches = {seed: next(stream) for seed, stream in streams.items()}
        if (ids := list(map(id, batches.values()))) != before:
            stacked = tree_map(lambda *x: torch.stack(x), *[batches[x] for x in seeds])
            before = ids
        losses.append(copies.step(stacked))
    return torch.stack(losses)


def train(member: Member, rule: HandRule, steps: int) -> Tensor:
    """The loss of every step."""
    model = copy.deepcopy(member.model)
    optimizer = NGOptimizer(model.named_parameters(), rule=rule, total_steps=steps)
    losses = []
    for batch in islice(_endless(member.batches), steps):
        optimizer.zero_grad()
        loss = member.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError(
                "specialize: expected batches that can be started again; got an "
                "iterator that has ended, or none. Return a list, or an object with "
                "__iter__."
            )
