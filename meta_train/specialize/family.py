"""A family of training runs, whose members have networks of equal shapes."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from harness.random import seeded
from meta_train.copies import Copies, LossOf
from ngopt import NGOptimizer
from ngopt.importing import load_object
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder
from ngopt.specialized.rates import Rates

HandRule = Soap | FirstOrder
WORST = 5.0  # log loss above the first, of runs that diverge


class Member(NamedTuple):
    """A training run without an optimizer.

    model: with its initial weights. batches: of the training, started again when it
    ends. loss: of a network and a batch, a positive scalar.
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

    def _member(self, seed: int) -> Member:
        with seeded(seed):
            return Member(*self.make(seed))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(p.shape) for p in self.member(0).model.parameters())


def load_family(path: str) -> Family:
    """The family in an importable module.

    path: "package.module", or "package.module:name" of an object in it. Its function
    `member(seed)` returns model, batches and loss of a training run.

    Raises ValueError if it cannot be imported, has no such function, or that returns
    something else.
    """
    module = load_object(path)
    make = getattr(module, "member", None)
    if not callable(make):
        raise ValueError(
            f"specialize: expected a function member(seed) in '{path}' that returns "
            "model, batches and loss of a training run, another one for every seed; "
            "got none. See the problems in examples/families."
        )
    parts = make(0)
    if not (isinstance(parts, tuple) and len(parts) == 3):
        raise ValueError(
            f"specialize: '{path}': expected member(0) to return model, batches and "
            f"loss; got {type(parts).__name__}"
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

    seeds: of the member of each copy; a member may have several. rates: of all
    parameters of the first copy, then of the second, ...

    Raises ValueError for a loss that is not positive.
    """
    losses = _losses(family, seeds, rule, steps, rates)
    if (losses <= 0).any():
        raise ValueError(
            f"specialize: '{family.name}': expected positive losses, as their "
            f"logarithms are compared; got {losses.min():.3g}. Add a constant to the "
            "loss."
        )
    last = losses[-max(1, steps // 10) :].mean(0).log()
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
            return _stacked(family, seeds, with_rates(rule, rates), steps)
        except RuntimeError:  # of vmap, or of the problem, which the next lines repeat
            family.stacks = False
    columns = []
    for i, seed in enumerate(seeds):
        own = with_rates(
            rule, None if rates is None else _of_copy(rates, i, len(seeds))
        )
        columns.append(_alone(family.member(seed), own, steps))
    return torch.stack(columns, 1)


def with_rates(rule: HandRule, rates: Rates | None) -> HandRule:
    if rates is None:
        return rule
    if isinstance(rule, Soap):
        return Soap(rule.config, rates)
    return replace(rule, rates=rates)


def _of_copy(rates: Rates, i: int, copies: int) -> Rates:
    parts = (rates.knots, rates.hidden, rates.output)
    return Rates(*[None if x is None else x.chunk(copies)[i] for x in parts])


def _stacked(
    family: Family, seeds: Sequence[int], rule: HandRule, steps: int
) -> Tensor:
    distinct = list(dict.fromkeys(seeds))
    members = {seed: family.member(seed) for seed in distinct}
    first = members[seeds[0]]
    models = [members[seed].model for seed in seeds]
    copies = Copies(models, first.loss, rule, steps)
    streams = [_endless(members[seed].batches) for seed in distinct]
    places = torch.tensor([distinct.index(seed) for seed in seeds])
    losses, batches, stacked = [], [], None
    for _ in range(steps):
        newest = [next(stream) for stream in streams]
        if stacked is None or any(
            x is not y for x, y in zip(newest, batches, strict=True)
        ):
            batches = newest
            stacked = tree_map(lambda *x: torch.stack(x)[places], *batches)
        losses.append(copies.step(stacked))
    return torch.stack(losses)


def _alone(member: Member, rule: HandRule, steps: int) -> Tensor:
    model = copy.deepcopy(member.model)
    optimizer = NGOptimizer(model.parameters(), rule=rule, total_steps=steps)
    losses = []
    for batch in islice(_endless(member.batches), steps):
        optimizer.zero_grad()
        loss = member.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    return chain.from_iterable(repeat(batches))
