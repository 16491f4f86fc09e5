"""The update rule of the paper's optimizers: a metanet predicts every update."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Size, Tensor, _foreach_add_, _foreach_mul_

from ngopt import chunking, functional
from ngopt.functional import Change, Gradients, Hyper, Record, UpdateRule
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets import features
from ngopt.metanets.features import LERP_WEIGHTS, MAX_GRADIENT, MOMENTA, STEP
from ngopt.metanets.graph_data.feature_sources import FlatFeatures, RawFeatures
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.context import CONTEXT, GraphContext, StepPlan
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.stepping.predictions import Predictions, Update
from ngopt.metanets.update_mlp import checked_updates
from ngopt.packing import PackedState, Packing, PaddedRows, scalar_packing
from ngopt.schedule import steps_so_far

# Up to this number of parameters, all features are in memory during a step.
SMALL_NETWORK = 1 << 16


@dataclass(eq=False)
class MetanetRule(UpdateRule):
    """p <- p + c * lr * u - c * lr * s * weight_decay * p.

    u is the metanet's prediction and s its nominal step (`config.nominal_step`), so
    that `weight_decay` has AdamW's units. c is the cooldown where the horizon
    `total_steps` is known and no scheduler attached, else 1.

    A record has `step`, () float32, the number of updates so far, and the momenta
    `exp_avg_0` to `exp_avg_4`, shaped like the parameter, float32 (float64 for float64
    parameters). A metanet that reads the graph only every few steps also has `context`,
    (*shape, d) bfloat16. The features of parameters without a gradient are zero.

    Without autograd, memory beyond state and gradients does not grow with the network
    in place; else it is one parameter's delta. A metanet that reads the graph in every
    step also needs the context of all elements until the step ends.

    Raises ValueError for a graph that the metanet cannot read.
    """

    metanet: Metanet
    graph: NeuralGraph
    cooldown: Cooldown | None = None
    total_steps: int | None = None

    def __post_init__(self) -> None:
        self.metanet.check(self.graph)
        self._context = GraphContext(self.metanet, self.graph)
        self._predictions = Predictions(self.metanet, self.graph)
        self._flat_state: FlatState | None = None

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = []
        for p in params:
            record = {STEP: torch.zeros((), dtype=torch.float32, device="cpu")}
            dtype = functional.state_dtype(p)
            for key in MOMENTA:
                record[key] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
            if self._context.is_stored:
                shape = (*p.shape, self.metanet.d_context)
                zeros = torch.zeros(shape, dtype=torch.bfloat16, device=p.device)
                record[CONTEXT] = zeros
            records.append(record)
        return records

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        present = _present(grads)
        if not present:
            return iter(())
        is_compiled = torch.compiler.is_compiling() and in_place
        # all features are in memory: where autograd needs them, and on CPUs those of a
        # small network. On accelerators the kernel that reads them makes them
        is_small = self.graph.numel <= SMALL_NETWORK and self._like().is_cpu
        is_small = is_small or torch.is_grad_enabled()
        # see `may_be_traced`
        reads_graph = not is_compiled and self._context.is_due(present, state)
        hyper = self._cooled(hyper, state)
        plan = StepPlan(
            grads, state, params, hyper, in_place, present, is_small, reads_graph
        )
        if in_place and self._has_flat_state(plan):
            return iter([self._changes(plan, state, self._flat_updates(plan))])
        if in_place:
            device = self._like().device
            limit = chunking.chunk_size(chunking.UPDATED_ELEMENTS, device)
            features.update_momenta_(grads, state, limit)
            records = state
        else:
            records = features.next_records(grads, state)
        context, updates = self._predicted(plan, records)
        if in_place:
            _foreach_add_([state[i][STEP] for i in present], 1)
        elif context is not None and self._context.is_stored:
            for i in present:
                shape = (*params[i].shape, self.metanet.d_context)
                records[i][CONTEXT] = context[i].view(shape)
        return map(partial(self._changes, plan, records), updates)

    def may_be_traced(self, grads: Gradients, state: Sequence[Record]) -> bool:
        """Steps that compute the context are not compiled: they make many small
        products, and the host decides which steps these are."""
        if not self.metanet.d_context:
            return True
        return not self._context.is_due(_present(grads), state)

    def height(self, now: Any) -> Any:
        """The factor c of the update after `now` steps of a training."""
        if self.cooldown is None or self.total_steps is None:
            return 1.0
        return self.cooldown.height(now, self.total_steps)

    def _cooled(self, hyper: Hyper, state: Sequence[Record]) -> Hyper:
        """Learning rates times the cooldown."""
        has_horizon = self.cooldown is not None and self.total_steps is not None
        if not has_horizon or hyper.scheduled:
            return hyper
        counts = [record[STEP] for record in state if record]
        height = self.height(steps_so_far(counts, self.total_steps))
        return hyper._replace(lr=[lr * height for lr in hyper.lr])

    def _has_flat_state(self, plan: StepPlan) -> bool:
        """Whether a small network has all gradients, and state in the metanet's dtype
        and on its device."""
        has_all = len(plan.present) == len(plan.state)
        if not (plan.is_small and has_all and _is_eager()):
            return False
        like = self._like()
        for record in plan.state:
            momentum = record[MOMENTA[0]]
            if momentum.dtype != like.dtype or momentum.device != like.device:
                return False
        return True

    def _flat_updates(self, plan: StepPlan) -> list[Update]:
        """Updates of all parameters at once; moves their state, in place."""
        if self._flat_state is None:
            shapes = [Size(spec.shape) for spec in self.graph.parameters]
            key = CONTEXT if self._context.is_stored else None
            d_context = self.metanet.d_context
            self._flat_state = FlatState(shapes, self._like(), key, d_context)
        n = self.graph.numel
        predictor = self._predictions.predictor(n)
        step_features = predictor.features(n)
        grads = [grad for grad in plan.grads if grad is not None]
        context = self._flat_state.update(plan.params, grads, plan.state, step_features)
        source = partial(FlatFeatures.finite, step_features.mT, self.graph)
        computed = self._context.of_step(plan, source)
        if computed is not None and context is None:
            context = chunking.concatenated(computed)
        values = self.graph.unflatten(predictor.predicted(n, context))
        return list(map(Update, plan.present, values))

    def _predicted(
        self, plan: StepPlan, records: Sequence[Record]
    ) -> tuple[Sequence[Tensor] | None, Iterable[Sequence[Update]]]:
        """The context of every parameter; updates of those present."""
        columns = _columns(plan, records)
        if not plan.is_small:
            raw = RawFeatures(columns, self.graph, self._like())
            context = self._context.of_step(plan, lambda: raw)
            return context, self._predictions.piece_by_piece(plan, raw, context)
        predictor = None
        if plan.in_place and _is_eager():
            predictor = self._predictions.predictor(self.graph.numel)
        step_features = self._predictions.features(columns, predictor)
        source = partial(FlatFeatures.finite, step_features, self.graph)
        context = self._context.of_step(plan, source)
        own = None if context is None else torch.cat(list(context)).to(step_features)
        if predictor is None:
            values = checked_updates(self.metanet.updates, step_features, own)
        else:
            values = predictor.predicted(len(step_features), own)
        by_parameter = self.graph.unflatten(values)
        return context, [[Update(i, by_parameter[i]) for i in plan.present]]

    def _changes(
        self, plan: StepPlan, records: Sequence[Record], updates: Sequence[Update]
    ) -> list[Change]:
        values, rates = [], []
        for update in updates:
            p = plan.params[update.position]
            dtype = functional.state_dtype(p)
            values.append(update.values.to(p.device, dtype))
            rates.append(plan.hyper.lr[update.position])
        deltas = _scaled(values, rates, plan.in_place)
        changes = []
        for update, lr, delta in zip(updates, rates, deltas, strict=True):
            i = update.position
            part = functional.whole
            if update.rows is not None:
                part = itemgetter(update.rows)
            p = part(plan.params[i])
            decay = plan.hyper.weight_decay[i]
            delta = delta.view(p.shape)
            if decay:
                nominal = self.metanet.config.nominal_step
                delta = delta - lr * nominal * decay * p
            changes.append(Change(i, delta, records[i], part))
        return changes

    def _like(self) -> Tensor:
        return next(self.metanet.parameters())


def _present(grads: Gradients) -> list[int]:
    """Positions of parameters with a gradient."""
    return [i for i, grad in enumerate(grads) if grad is not None]


def _columns(plan: StepPlan, records: Sequence[Record]) -> list[list[Tensor]]:
    """Weight, gradient and momenta of every parameter; [] without a gradient."""
    columns = []
    for p, grad, record in zip(plan.params, plan.grads, records, strict=True):
        own = []
        if grad is not None:
            own = [p, grad, *(record[key] for key in MOMENTA)]
        columns.append(own)
    return columns


def _is_eager() -> bool:
    """Whether a step is neither compiled nor differentiated."""
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled())


def _scaled(
    values: list[Tensor], rates: Sequence[float | Tensor], in_place: bool
) -> list[Tensor]:
    """Values times learning rates, in place where a step is, which saves memory."""
    numbers = [rate for rate in rates if isinstance(rate, float)]
    if in_place and len(numbers) == len(rates):
        if any(rate != 1 for rate in numbers):
            _foreach_mul_(values, numbers)
        return values
    found = []
    for x, rate in zip(values, rates, strict=True):
        found.append(x.mul_(rate) if in_place else rate * x)
    return found


class FlatState:
    """State of a small network's parameters as a few tensors, for steps in place.

    Records hold views of them. A step makes as many calls for all parameters as for
    one, and allocates almost nothing.

    shapes: of the parameters. like: has the dtype and device of the state. context: key
    of the stored context of a parameter, (*shape, d); None if none is stored.
    """

    def __init__(
        self, shapes: Sequence[Size], like: Tensor, context: str | None, d_context: int
    ):
        of_momenta = _flat(MOMENTA, shapes, (len(MOMENTA), -1))
        of_steps = scalar_packing(len(shapes), [STEP], torch.device("cpu"))
        packings = [of_momenta, of_steps]
        if context is not None:
            own = [Size((*shape, d_context)) for shape in shapes]
            packings.append(_flat([context], own, (-1, d_context)))
        self._state = PackedState(packings)
        self._lerp_weights = like.new_tensor(LERP_WEIGHTS).unsqueeze(1)
        numel = sum(shape.numel() for shape in shapes)
        self._clipped = like.new_empty(numel)

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        records: Sequence[Record],
        out: Tensor,
    ) -> Tensor | None:
        """Updates steps and momenta, in the records; writes features to `out`, (14, n).

        Returns the stored context of all elements, (n, d), of which the records hold
        views; None if none is stored.
        """
        momenta, steps, *context = self._state.open(records, in_place=True)
        steps.add_(1)
        columns = out.chunk(2)[0]
        _concatenated(params, columns[0])
        gradient = _concatenated(grads, columns[1])
        torch.clamp(gradient, -MAX_GRADIENT, MAX_GRADIENT, out=self._clipped)
        momenta.lerp_(self._clipped, self._lerp_weights)
        columns[2:] = momenta
        features.preprocess_in_place(out)
        return context[0] if context else None


def _flat(
    keys: Sequence[str], shapes: Sequence[Size], shape: tuple[int, int]
) -> Packing:
    """One tensor of a shape, with tensors of `shapes` one after the other for each key
    of the records."""
    places = [(i, key) for key in keys for i in range(len(shapes))]
    rows = PaddedRows([*shapes] * len(keys), lanes=1)
    return Packing(places, lambda values: rows.join(values).view(shape), rows.split)


def _concatenated(values: Sequence[Tensor], out: Tensor) -> Tensor:
    """All elements of some tensors, (n,)."""
    return torch.cat([x.reshape(-1) for x in values], out=out)
