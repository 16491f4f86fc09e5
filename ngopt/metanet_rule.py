"""The rule of the paper's optimizers: a metanet predicts every update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import (
    Tensor,
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage]
)

from ngopt import at_once
from ngopt.base.flat import concatenated
from ngopt.base.schedule import steps_so_far
from ngopt.cooldown import Cooldown
from ngopt.features import MOMENTA, move_momenta, update_momenta
from ngopt.flat_state import FlatState
from ngopt.functional import Change, Hyper, Record, state_dtype
from ngopt.graph.core import NeuralGraph
from ngopt.looking import look_at_graph, registered
from ngopt.models.metanet import Metanet
from ngopt.models.parts import GraphParts
from ngopt.models.sources import FlatFeatures, RawFeatures, Source
from ngopt.predictions import Predictions, Update

CONTEXT = "context"
"""Key of what the graph said of a parameter, where that is used for several steps."""

# Features of a network of so many parameters are kept during a step; of a larger one,
# made when read.
FEW = 1 << 16


class _Look(NamedTuple):
    """What a step does, decided on the host.

    present: positions of parameters that have a gradient. is_small: whether all features are kept
    during the step. is_due: whether the metanet looks at the graph; a compiled step learns that
    when it is made (`ngopt.looking`).
    """

    present: Sequence[int]
    is_small: bool
    is_due: bool


class MetanetRule:
    """An `UpdateRule`: p <- p + c * lr * u - c * lr * s * weight_decay * p.

    u is the metanet's prediction and s its nominal step (`config.nominal_step`), so that
    `weight_decay` has AdamW's units; c is what the cooldown says where the horizon `total_steps` is
    known and no scheduler attached, else 1. A record is `step`, () float32, the number of updates
    so far; the momenta `exp_avg_0` to `exp_avg_4`, shaped like the parameter, float32 (float64 for
    float64 parameters); and, where the metanet looks at the graph only every few steps, `context`,
    what it said of each element, bfloat16. The features of absent parameters are zero.

    Where nothing is differentiated, memory beyond state and gradients does not grow with the
    network, in place (else one parameter's delta is held), but for a metanet that looks at the
    graph in every step: what the graph says of every element is then held until the step ends.

    Raises ValueError for a graph that the metanet cannot read.
    """

    def __init__(
        self,
        metanet: Metanet,
        graph: NeuralGraph,
        cooldown: Cooldown | None = None,
        total_steps: int | None = None,
    ):
        metanet.check(graph)
        self.metanet, self.graph = metanet, graph
        self.cooldown, self.total_steps = cooldown, total_steps
        self._parts: tuple[tuple, GraphParts | None] | None = None
        self._predictions = Predictions(metanet, graph)
        self._flat: FlatState | None = None
        self._number = registered(self)

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        return [self._first_record(p) for p in params]

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[Change]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return iter(())
        if (
            self.cooldown is not None
            and self.total_steps is not None
            and not hyper.scheduled
        ):
            height = self.height(
                steps_so_far(
                    [record["step"] for record in state if record],
                    self.total_steps,
                )
            )
            hyper = hyper._replace(lr=[lr * height for lr in hyper.lr])
        is_traced = torch.compiler.is_compiling() and in_place
        look = _Look(
            present=present,
            is_small=self._is_small(),
            is_due=is_traced
            or self._is_due([state[i]["step"] for i in present]),
        )
        if in_place and self._is_flat(look, state):
            return self._update_flat(look, grads, state, params, hyper)
        if in_place:
            self._move_momenta(grads, state)
        rows = zip(grads, state, strict=True)
        records = [
            None if grad is None else _next_record(old, grad, in_place)
            for grad, old in rows
        ]
        columns = [
            []
            if g is None or r is None
            else [p, g, *(r[key] for key in MOMENTA)]
            for p, g, r in zip(params, grads, records, strict=True)
        ]
        said, updates = self._predicted(look, columns, state, in_place)
        return self._changes(updates, said, records, params, hyper)

    def _is_small(self) -> bool:
        return self.graph.numel <= FEW or torch.is_grad_enabled()

    def _is_flat(self, look: _Look, state: Sequence[Record]) -> bool:
        """Whether all parameters are there, few, and kept as the metanet computes."""
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or not look.is_small
        ):
            return False
        like = self._like()
        is_whole = len(look.present) == len(state)
        return is_whole and all(
            record[MOMENTA[0]].dtype == like.dtype
            and record[MOMENTA[0]].device == like.device
            for record in state
        )

    def _update_flat(
        self,
        look: _Look,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> Iterator[Change]:
        """`update` of all parameters at once, where their state is."""
        if self._flat is None:
            shapes = [torch.Size(spec.shape) for spec in self.graph.parameters]
            key = CONTEXT if self._is_amortized else None
            self._flat = FlatState(
                shapes, self._like(), key, self.metanet.d_context
            )
        n = self.graph.numel
        predictor = self._predictions.predictor(n)
        features = predictor.features(n)
        self._flat.move(
            params,
            [grad for grad in grads if grad is not None],
            state,
            features,
        )
        context = None
        if self.metanet.d_context:
            finite = partial(FlatFeatures.finite, features.mT, self.graph)
            kept = self._flat.context(state)
            said = self._context(look, finite, state, in_place=True)
            context = concatenated(said or []) if kept is None else kept
        values = self.graph.unflatten(predictor.predicted(n, context))
        # what the graph said is where it stays already
        rates = [lr for lr in hyper.lr if isinstance(lr, float)]
        if any(hyper.weight_decay) or len(rates) < len(values):
            return self._changes(
                map(Update, look.present, values), None, state, params, hyper
            )
        if any(rate != 1 for rate in rates):
            _foreach_mul_(values, rates)
        return map(Change, look.present, values, state)

    def _changes(
        self,
        updates: Iterable[Update],
        said: Sequence[Tensor] | None,
        records: Sequence[Record | None],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> Iterator[Change]:
        for i, u, rows in updates:
            p = params[i]
            record = records[i]
            lr = hyper.lr[i]
            decay = hyper.weight_decay[i]
            assert record is not None
            if said is not None and self._is_amortized:
                record[CONTEXT] = said[i].view(*p.shape, -1)
            p = p if rows is None else p[rows]
            value = u.to(device=p.device, dtype=state_dtype(p)).view(p.shape)
            # in place where nobody differentiates: another delta of a large parameter is much
            # memory
            delta = lr * value if torch.is_grad_enabled() else _times(value, lr)
            if decay:
                delta = (
                    delta - lr * self.metanet.config.nominal_step * decay * p
                )
            yield Change(i, delta, record, rows)

    def _predicted(
        self,
        look: _Look,
        columns: Sequence[Sequence[Tensor]],
        state: Sequence[Record],
        in_place: bool,
    ) -> tuple[Sequence[Tensor] | None, Iterator[Update]]:
        """What the graph says of every parameter; updates of those present."""
        if look.is_small:
            keeps_memory = in_place and not torch.compiler.is_compiling()
            predictor = (
                self._predictions.predictor(self.graph.numel)
                if keeps_memory
                else None
            )
            features = self._predictions.features(columns, predictor)
            finite = partial(FlatFeatures.finite, features, self.graph)
            said = self._context(look, finite, state, in_place, columns)
            return said, self._predictions.all_at_once(
                features, predictor, said, look.present
            )
        raw = RawFeatures(columns, self.graph, self._like())
        said = self._context(look, lambda: raw, state, in_place, columns)
        return said, self._predictions.piece_by_piece(
            raw, said, look.present, in_place
        )

    def _context(
        self,
        look: _Look,
        source: Callable[[], Source],
        state: Sequence[Record],
        in_place: bool,
        columns: Sequence[Sequence[Tensor]] = (),
    ) -> Sequence[Tensor] | None:
        """What the graph says of every parameter, (numel, d); None if the metanet sees no graph.

        columns: of a compiled step, which makes no source of them.
        """
        if (
            torch.compiler.is_compiling()
            and in_place
            and self.metanet.d_context
        ):
            return self._looked(look.present, columns, state)
        parts = self._parts_now(look.is_small)
        if parts is None:
            return None
        if not look.is_due:
            return self._kept(look.present, state)
        return self._said(source(), parts, look.present, state, in_place)

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        return True

    def height(self, now: Any) -> Any:
        """What multiplies the update after `now` steps of a training."""
        if self.cooldown is None or self.total_steps is None:
            return 1.0
        return self.cooldown.height(now, self.total_steps)

    @property
    def _is_amortized(self) -> bool:
        return self.metanet.graph_every > 1

    def _first_record(self, param: Tensor) -> Record:
        dtype = state_dtype(param)
        record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
        for key in MOMENTA:
            record[key] = torch.zeros_like(
                param, dtype=dtype, requires_grad=False
            )
        if self._is_amortized:
            shape = (*param.shape, self.metanet.d_context)
            record[CONTEXT] = torch.zeros(
                shape, dtype=torch.bfloat16, device=param.device
            )
        return record

    def _move_momenta(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> None:
        """In place, of as many elements at once as need little memory for copies of gradients."""
        found = {i: grad for i, grad in enumerate(grads) if grad is not None}
        sizes = {i: grad.numel() for i, grad in found.items()}
        for some in at_once.together(sizes, at_once.MOVED):
            momenta = [state[i][key] for i in some for key in MOMENTA]
            # more than 1 of a long one, which is alone
            count = ceil(sizes[some[-1]] / at_once.MOVED)
            gradients = [found[i] for i in some]
            pieces = [at_once.in_rows(x, count) for x in (*momenta, *gradients)]
            for piece in zip(*pieces, strict=True):
                moved = [
                    piece[j : j + len(MOMENTA)]
                    for j in range(0, len(momenta), len(MOMENTA))
                ]
                move_momenta(moved, piece[len(momenta) :])

    def _is_due(self, counts: Sequence[Tensor]) -> bool:
        """Whether the metanet looks at the graph in this step."""
        if not self._is_amortized:
            return True
        steps = [int(count) for count in counts]
        return min(steps) == 0 or max(steps) % self.metanet.graph_every == 0

    def _looked(
        self,
        present: Sequence[int],
        columns: Sequence[Sequence[Tensor]],
        state: Sequence[Record],
    ) -> list[Tensor]:
        """`_said` or `_kept` within a compiled step."""
        d, like = self.metanet.d_context, self._like()
        if self._is_amortized:
            said = self._kept(present, state)
        else:
            said = [
                like.new_empty(spec.numel, d) for spec in self.graph.parameters
            ]
        given = [x for some in columns for x in some]
        look_at_graph(
            said,
            given,
            list(present),
            [state[i]["step"] for i in present],
            self._number,
        )
        return said

    def look_if_due(
        self,
        said: Sequence[Tensor],
        columns: Sequence[Tensor],
        present: Sequence[int],
        steps: Sequence[Tensor],
    ) -> None:
        """See `ngopt.looking.Looker`."""
        parts = self._parts_now(self._is_small())
        if parts is None or not self._is_due(steps):
            return
        width = 2 + len(MOMENTA)
        found: list[Sequence[Tensor]] = [()] * len(said)
        for n, i in enumerate(present):
            found[i] = columns[n * width : (n + 1) * width]
        self.metanet.context(
            RawFeatures(found, self.graph, self._like()), parts, said
        )

    def _kept(
        self, present: Sequence[int], state: Sequence[Record]
    ) -> list[Tensor]:
        """What the graph said of every parameter when it was last looked at, (numel,
        d), bfloat16."""
        d, like = self.metanet.d_context, self._like()
        known = set(present)
        nothing = {"dtype": torch.bfloat16, "device": like.device}
        return [
            state[i][CONTEXT].view(-1, d)
            if i in known
            else torch.zeros(spec.numel, d, **nothing)
            for i, spec in enumerate(self.graph.parameters)
        ]

    def _said(
        self,
        source: Source,
        parts: GraphParts,
        present: Sequence[int],
        state: Sequence[Record],
        in_place: bool,
    ) -> list[Tensor]:
        """What the graph says of every parameter, (numel, d)."""
        if not self._is_amortized:
            return self.metanet.context(source, parts)
        if torch.is_grad_enabled():
            return [x.bfloat16() for x in self.metanet.context(source, parts)]
        old = self._kept(present, state)
        out = old if in_place else [torch.empty_like(x) for x in old]
        return self.metanet.context(source, parts, out)

    def _like(self) -> Tensor:
        return next(self.metanet.parameters())

    def _parts_now(self, is_small: bool) -> GraphParts | None:
        """What the metanet derives from the graph, made once; None if it sees no graph."""
        if not self.metanet.d_context:
            return None
        like = self._like().detach()
        limit = None if is_small else at_once.limit(at_once.EDGES, like)
        wanted = limit, like.device, like.dtype
        if self._parts is None or self._parts[0] != wanted:
            self._parts = wanted, self.metanet.parts(self.graph, like, limit)
        return self._parts[1]


def _times(value: Tensor, lr: float | Tensor) -> Tensor:
    """In place; nothing where that is all that it would do."""
    return value if isinstance(lr, float) and lr == 1 else value.mul_(lr)


def _next_record(old: Record, grad: Tensor, is_moved: bool) -> Record:
    """is_moved: the momenta are the new ones already."""
    momenta = [old[key] for key in MOMENTA]
    momenta = momenta if is_moved else update_momenta(momenta, grad)
    return {
        **old,
        "step": old["step"] + 1,
        **dict(zip(MOMENTA, momenta, strict=True)),
    }
