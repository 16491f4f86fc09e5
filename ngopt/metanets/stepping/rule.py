"""The rule of the paper's optimizers: a metanet predicts every update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage]
)

from ngopt import chunking
from ngopt.chunking import concatenated
from ngopt.functional import Change, Hyper, Record, state_dtype, whole
from ngopt.graph.core import NeuralGraph
from ngopt.metanets.features import MOMENTA, move_momenta, next_records
from ngopt.metanets.graph_data.feature_sources import (
    FeatureSource,
    FlatFeatures,
    RawFeatures,
)
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.stepping.flat_state import FlatState
from ngopt.metanets.stepping.graph_context import look_at_graph, registered
from ngopt.metanets.stepping.predictions import Predictions, Update
from ngopt.schedule import steps_so_far

CONTEXT = "context"
"""Key of what the graph said of a parameter, where that is used for several steps."""

# Features of a network of so many parameters are kept during a step; of a larger one,
# made when read.
SMALL_NETWORK = 1 << 16


class _Look(NamedTuple):
    """What a step does, decided on the host.

    present: positions of parameters that have a gradient. in_place: see
    `UpdateRule.update`. is_small: whether all features are kept during the step.
    is_due: whether the metanet looks at the graph; a compiled step learns that when it
    is made (`ngopt.metanets.stepping.graph_context`).
    """

    present: Sequence[int]
    in_place: bool
    is_small: bool
    is_due: bool


class MetanetRule:
    """An `UpdateRule`: p <- p + c * lr * u - c * lr * s * weight_decay * p.

    u is the metanet's prediction and s its nominal step (`config.nominal_step`), so
    that `weight_decay` has AdamW's units; c is what the cooldown says where the horizon
    `total_steps` is known and no scheduler attached, else 1. A record is `step`, ()
    float32, the number of updates so far; the momenta `exp_avg_0` to `exp_avg_4`,
    shaped like the parameter, float32 (float64 for float64 parameters); and, where the
    metanet looks at the graph only every few steps, `context`, what it said of each
    element, bfloat16. The features of absent parameters are zero.

    Where nothing is differentiated, memory beyond state and gradients does not grow
    with the network, in place (else one parameter's delta is held), but for a metanet
    that looks at the graph in every step: what the graph says of every element is then
    held until the step ends.

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
        self._parts: tuple[tuple, GraphTensors | None] | None = None
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
    ) -> Iterator[list[Change]]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return iter(())
        has_horizon = self.cooldown is not None and self.total_steps is not None
        if has_horizon and not hyper.scheduled:
            counts = [record["step"] for record in state if record]
            height = self.height(steps_so_far(counts, self.total_steps))
            hyper = hyper._replace(lr=[lr * height for lr in hyper.lr])
        is_traced = torch.compiler.is_compiling() and in_place
        look = _Look(
            present=present,
            in_place=in_place,
            is_small=self._is_small(),
            is_due=is_traced or self._is_due([state[i]["step"] for i in present]),
        )
        if in_place and self._is_flat(look, state):
            return self._update_flat(look, grads, state, params, hyper)
        if in_place:
            most = chunking.amount(chunking.MOVED, self._like().device)
            move_momenta(grads, state, most)
        records = state if in_place else next_records(grads, state)
        columns = [
            [] if g is None else [p, g, *(r[key] for key in MOMENTA)]
            for p, g, r in zip(params, grads, records, strict=True)
        ]
        said, updates = self._predicted(look, columns, state)
        if in_place:
            _foreach_add_([state[i]["step"] for i in present], 1)
        elif said is not None and self._is_amortized:
            for i in present:
                shape = (*params[i].shape, self.metanet.d_context)
                records[i][CONTEXT] = said[i].view(shape)
        return map(partial(self._changes, look, records, params, hyper), updates)

    def _is_small(self) -> bool:
        """Whether all features are in memory: where autograd needs them, and on CPUs
        those of a small network. On accelerators the kernel that reads them makes them.
        """
        is_small = self.graph.numel <= SMALL_NETWORK and self._like().is_cpu
        return is_small or torch.is_grad_enabled()

    def _is_flat(self, look: _Look, state: Sequence[Record]) -> bool:
        """Whether all parameters are there, few, and kept as the metanet computes."""
        if not (look.is_small and _is_plain()):
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
    ) -> Iterator[list[Change]]:
        """`update` of all parameters at once, where their state is."""
        if self._flat is None:
            shapes = [torch.Size(spec.shape) for spec in self.graph.parameters]
            key = CONTEXT if self._is_amortized else None
            self._flat = FlatState(shapes, self._like(), key, self.metanet.d_context)
        n = self.graph.numel
        predictor = self._predictions.predictor(n)
        features = predictor.features(n)
        present = [grad for grad in grads if grad is not None]
        self._flat.move(params, present, state, features)
        context = None
        if self.metanet.d_context:
            finite = partial(FlatFeatures.finite, features.mT, self.graph)
            kept = self._flat.context(state)
            said = self._context(look, finite, state)
            context = concatenated(said or []) if kept is None else kept
        values = self.graph.unflatten(predictor.predicted(n, context))
        # what the graph said is where it stays already
        updates = list(map(Update, look.present, values))
        return iter([self._changes(look, state, params, hyper, updates)])

    def _changes(
        self,
        look: _Look,
        records: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        updates: Sequence[Update],
    ) -> list[Change]:
        own = [params[u.position] for u in updates]
        rates = [hyper.lr[u.position] for u in updates]
        rows = zip(updates, own, strict=True)
        values = [u.values.to(p.device, state_dtype(p)) for u, p in rows]
        deltas = _scaled(values, rates, look.in_place)
        changes = []
        for u, p, lr, delta in zip(updates, own, rates, deltas, strict=True):
            part = whole if u.rows is None else itemgetter(u.rows)
            p, decay = part(p), hyper.weight_decay[u.position]
            delta = delta.view(p.shape)
            if decay:
                nominal = self.metanet.config.nominal_step
                delta = delta - lr * nominal * decay * p
            changes.append(Change(u.position, delta, records[u.position], part))
        return changes

    def _predicted(
        self,
        look: _Look,
        columns: Sequence[Sequence[Tensor]],
        state: Sequence[Record],
    ) -> tuple[Sequence[Tensor] | None, Iterable[Sequence[Update]]]:
        """What the graph says of every parameter; updates of those present."""
        if look.is_small:
            predictor = None
            if look.in_place and _is_plain():
                predictor = self._predictions.predictor(self.graph.numel)
            features = self._predictions.features(columns, predictor)
            finite = partial(FlatFeatures.finite, features, self.graph)
            said = self._context(look, finite, state, columns)
            updates = self._predictions.all_at_once(
                features, predictor, said, look.present
            )
            return said, [updates]
        raw = RawFeatures(columns, self.graph, self._like())
        said = self._context(look, lambda: raw, state, columns)
        return said, self._predictions.piece_by_piece(
            raw, said, look.present, look.in_place
        )

    def _context(
        self,
        look: _Look,
        source: Callable[[], FeatureSource],
        state: Sequence[Record],
        columns: Sequence[Sequence[Tensor]] = (),
    ) -> Sequence[Tensor] | None:
        """What the graph says of every parameter, (numel, d); None if the metanet sees
        no graph.

        columns: of a compiled step, which makes no source of them.
        """
        is_traced = torch.compiler.is_compiling() and look.in_place
        if is_traced and self.metanet.d_context:
            return self._looked(look.present, columns, state)
        parts = self._parts_now(look.is_small)
        if parts is None:
            return None
        if not look.is_due:
            return self._kept(look.present, state)
        return self._said(source(), parts, look, state)

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        return True

    def renewal_interval(self, device: torch.device) -> None:
        return None

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
            record[key] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        if self._is_amortized:
            shape = (*param.shape, self.metanet.d_context)
            record[CONTEXT] = torch.zeros(
                shape, dtype=torch.bfloat16, device=param.device
            )
        return record

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
            said = [like.new_empty(spec.numel, d) for spec in self.graph.parameters]
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
        """See `ngopt.metanets.stepping.graph_context.Looker`."""
        parts = self._parts_now(self._is_small())
        if parts is None or not self._is_due(steps):
            return
        width = 2 + len(MOMENTA)
        found: list[Sequence[Tensor]] = [()] * len(said)
        for n, i in enumerate(present):
            found[i] = columns[n * width : (n + 1) * width]
        self.metanet.context(RawFeatures(found, self.graph, self._like()), parts, said)

    def _kept(self, present: Sequence[int], state: Sequence[Record]) -> list[Tensor]:
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
        source: FeatureSource,
        parts: GraphTensors,
        look: _Look,
        state: Sequence[Record],
    ) -> list[Tensor]:
        """What the graph says of every parameter, (numel, d)."""
        if not self._is_amortized:
            return self.metanet.context(source, parts)
        if torch.is_grad_enabled():
            return [x.bfloat16() for x in self.metanet.context(source, parts)]
        old = self._kept(look.present, state)
        out = old if look.in_place else [torch.empty_like(x) for x in old]
        return self.metanet.context(source, parts, out)

    def _like(self) -> Tensor:
        return next(self.metanet.parameters())

    def _parts_now(self, is_small: bool) -> GraphTensors | None:
        """What the metanet derives from the graph, made once; None if it sees no graph."""
        if not self.metanet.d_context:
            return None
        like = self._like().detach()
        limit = None if is_small else chunking.limit(chunking.EDGES, like)
        wanted = limit, like.device, like.dtype
        if self._parts is None or self._parts[0] != wanted:
            self._parts = wanted, self.metanet.parts(self.graph, like, limit)
        return self._parts[1]


def _is_plain() -> bool:
    """Whether a step is neither compiled nor differentiated."""
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled())


def _scaled(
    values: list[Tensor], rates: Sequence[float | Tensor], in_place: bool
) -> list[Tensor]:
    """Values times learning rates, in place where a step is, which saves memory."""
    if not in_place:
        return [rate * x for x, rate in zip(values, rates, strict=True)]
    numbers = [rate for rate in rates if isinstance(rate, float)]
    if len(numbers) < len(rates):
        return [x.mul_(rate) for x, rate in zip(values, rates, strict=True)]
    if any(rate != 1 for rate in numbers):
        _foreach_mul_(values, numbers)
    return values
