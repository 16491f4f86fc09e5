"""The update rule of the paper's optimizers: a metanet predicts every update.

A step updates the momenta, reads the graph where that is due, predicts the updates and
scales them. Features of a small network are in memory at once; those of a large one are
computed where they are read, and its updates are predicted some at a time.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor, _foreach_mul_

from ngopt import chunking, functional
from ngopt.functional import BoundRule, Change, Gradients, Hyper, Record
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets import features
from ngopt.metanets.features import MOMENTA, NUM_COLUMNS, STEP, PackedMomenta
from ngopt.metanets.graph_data.feature_sources import FlatFeatures, RawFeatures
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.context import CONTEXT, GraphContext, StepPlan
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.update_mlp import Predictor
from ngopt.schedule import steps_so_far

# Up to this number of parameters, all features are in memory during a step.
SMALL_NETWORK = 1 << 16


class Update(NamedTuple):
    """The prediction for a parameter, or for a part of it; see `Change`."""

    position: int
    values: Tensor
    part: Callable[[Tensor], Tensor] = functional.all_elements


@dataclass(eq=False)
class MetanetRule(BoundRule):
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
        self._predictor: Predictor | None = None
        self._momenta: PackedMomenta | None = None

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
        like = next(self.metanet.parameters())
        # All features are in memory where autograd needs them, and on CPUs those of a
        # small network. On accelerators the kernel that reads them makes them.
        is_small = self.graph.numel <= SMALL_NETWORK and like.is_cpu
        # see `may_be_traced`
        is_traced = torch.compiler.is_dynamo_compiling() and in_place
        plan = StepPlan(
            grads=grads,
            state=state,
            params=params,
            hyper=self._cooled(hyper, state),
            in_place=in_place,
            present=present,
            like=like,
            is_small=is_small or torch.is_grad_enabled(),
            reads_graph=not is_traced and self._context.is_due(present, state),
        )
        step = self._small_step if plan.is_small else self._large_step
        records, updates = step(plan)
        return map(partial(self._changes, plan, records), updates)

    def may_be_traced(self, grads: Gradients, state: Sequence[Record]) -> bool:
        """Steps that compute the context are not compiled: they make many small
        products, and the host decides which steps these are."""
        if not self.metanet.d_context:
            return True
        return not self._context.is_due(_present(grads), state)

    def _cooled(self, hyper: Hyper, state: Sequence[Record]) -> Hyper:
        """Learning rates times the cooldown."""
        if self.cooldown is None or self.total_steps is None or hyper.scheduled:
            return hyper
        counts = [record[STEP] for record in state if record]
        now = steps_so_far(counts, self.total_steps)
        height = self.cooldown.height(now, self.total_steps)
        return hyper._replace(lr=[lr * height for lr in hyper.lr])

    def _small_step(
        self, plan: StepPlan
    ) -> tuple[Sequence[Record], Iterable[Sequence[Update]]]:
        """New records, and the updates of all parameters at once."""
        memory = out = None
        if plan.in_place and not torch.is_grad_enabled():
            memory = self._updated_predictor(self.graph.numel, plan.like)
        if memory is not None:
            out = memory.features(self.graph.numel)
        records, step_features = self._features(plan, out)
        source = partial(FlatFeatures.finite, step_features, self.graph)
        contexts = self._context.of_step(plan, records, source)
        context = None if contexts is None else chunking.concatenated(contexts)
        if memory is not None:
            values = memory.predicted(len(step_features), context)
        else:
            values = self.metanet.checked_updates(step_features, context)
        by_parameter = self.graph.unflatten(values)
        return records, [[Update(i, by_parameter[i]) for i in plan.present]]

    def _features(
        self, plan: StepPlan, out: Tensor | None
    ) -> tuple[Sequence[Record], Tensor]:
        """New records, and the preprocessed weight, gradient and momenta of all
        parameters, (numel, 14), zeros where the gradient is absent.

        out: where the features are written, (14, numel); without it autograd may
        follow.
        """
        like = plan.like
        are_all_present = len(plan.present) == len(plan.params)
        if out is not None and are_all_present and _are_like(plan.state, like):
            if self._momenta is None:
                self._momenta = PackedMomenta(self.graph, like)
            self._momenta.update(plan.params, plan.grads, plan.state, out)
            return plan.state, out.mT
        records = _next_records(plan)
        zero = like.new_zeros(())
        by_parameter, masks = [], []
        for i, columns in enumerate(_columns(plan, records)):
            spec = self.graph.parameters[i]
            by_parameter.append(columns or [zero.expand(spec.shape)] * NUM_COLUMNS)
            masks.append(like.new_full((spec.numel, 1), bool(columns)))
        by_column = zip(*by_parameter, strict=True)
        on_device = [[x.to(like.device) for x in column] for column in by_column]
        flat = list(map(self.graph.flatten, on_device))
        step_features = features.features_of(flat, like, out)
        if not are_all_present:
            mask = torch.cat(masks)
            is_new = out is None
            step_features = step_features * mask if is_new else step_features.mul_(mask)
        return records, step_features

    def _large_step(
        self, plan: StepPlan
    ) -> tuple[Sequence[Record], Iterable[Sequence[Update]]]:
        """New records, and updates that are predicted while they are iterated over."""
        records = _next_records(plan)
        source = RawFeatures(_columns(plan, records), self.graph, plan.like)
        context = self._context.of_step(plan, records, lambda: source)
        return records, self._updates_in_batches(plan, source, context)

    def _updates_in_batches(
        self, plan: StepPlan, source: RawFeatures, context: Sequence[Tensor] | None
    ) -> Iterator[list[Update]]:
        """Updates of some parameters at a time; in place, of some rows of a long
        one."""
        sizes = {i: self.graph.parameters[i].numel for i in plan.present}
        capacity = chunking.total_chunk_size(chunking.ELEMENTS, plan.like)
        memory = self._updated_predictor(capacity, plan.like)
        limit = chunking.total_chunk_size(chunking.CONCATENATED_ELEMENTS, plan.like)
        longest = limit
        if memory is not None:
            longest = chunking.chunk_size(chunking.UPDATED_ELEMENTS, plan.like.device)
            limit = min(limit, longest)
        for batch in chunking.batches_up_to(sizes, limit):
            columns = source.joined(batch)
            contexts = None
            if context is not None:
                contexts = chunking.concatenated([context[i] for i in batch])
            if not plan.in_place or sizes[batch[0]] <= longest:
                values = self._predicted(columns, contexts, plan.like, memory)
                yield list(map(Update, batch, values.split([sizes[i] for i in batch])))
                continue
            (position,) = batch  # a long parameter is alone
            count = self.graph.parameters[position].shape[0]
            width = sizes[position] // count
            for rows in chunking.even_slices(count, max(1, longest // width)):
                elements = slice(rows.start * width, rows.stop * width)
                piece = [column[elements] for column in columns]
                piece_context = None if contexts is None else contexts[elements]
                values = self._predicted(piece, piece_context, plan.like, memory)
                yield [Update(position, values, itemgetter(rows))]

    def _predicted(
        self,
        columns: Sequence[Tensor],
        context: Tensor | None,
        like: Tensor,
        memory: Predictor | None,
    ) -> Tensor:
        """Updates (n,) of elements of a large network.

        columns: weight, gradient and momenta, (n,) each. context: (n, d), if any.
        """
        if memory is not None:
            return memory.of_columns(columns, context)
        return self.metanet.checked_updates(
            features.features_of(columns, like), context
        )

    def _updated_predictor(self, capacity: int, like: Tensor) -> Predictor | None:
        """The predictor, made once for a dtype and device, with the weights as they
        are; None if the updates are not those of an MLP, and in a compiled step, which
        plans its own memory."""
        mlp = self.metanet.update_mlp()
        if mlp is None or torch.compiler.is_dynamo_compiling():
            return None
        if self._predictor is None or not self._predictor.fits(capacity, like):
            self._predictor = Predictor(mlp, capacity)
        self._predictor.read_weights()
        return self._predictor

    def _changes(
        self, plan: StepPlan, records: Sequence[Record], updates: Sequence[Update]
    ) -> list[Change]:
        values, rates = [], []
        for update in updates:
            p = plan.params[update.position]
            values.append(update.values.to(p.device, functional.state_dtype(p)))
            rates.append(plan.hyper.lr[update.position])
        deltas = _scaled(values, rates, plan.in_place)
        changes = []
        for update, lr, delta in zip(updates, rates, deltas, strict=True):
            i, _, part = update
            p = part(plan.params[i])
            decay = plan.hyper.weight_decay[i]
            delta = delta.view(p.shape)
            if decay:
                delta = delta - lr * self.metanet.config.nominal_step * decay * p
            changes.append(Change(i, delta, records[i], part))
        return changes


def _present(grads: Gradients) -> list[int]:
    """Positions of parameters with a gradient."""
    return [i for i, grad in enumerate(grads) if grad is not None]


def _next_records(plan: StepPlan) -> Sequence[Record]:
    """The records after the step, but for their contexts."""
    if not plan.in_place:
        return features.next_records(plan.grads, plan.state)
    limit = chunking.chunk_size(chunking.UPDATED_ELEMENTS, plan.like.device)
    features.update_records_(plan.grads, plan.state, limit)
    return plan.state


def _columns(plan: StepPlan, records: Sequence[Record]) -> list[list[Tensor]]:
    """Weight, gradient and momenta of every parameter; [] without a gradient."""
    columns = []
    for p, grad, record in zip(plan.params, plan.grads, records, strict=True):
        if grad is None:
            columns.append([])
        else:
            columns.append([p, grad, *(record[key] for key in MOMENTA)])
    return columns


def _are_like(records: Sequence[Record], like: Tensor) -> bool:
    """Whether all momenta have a tensor's dtype and are on its device."""
    momenta = [record[MOMENTA[0]] for record in records]
    return all(x.dtype == like.dtype and x.device == like.device for x in momenta)


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
