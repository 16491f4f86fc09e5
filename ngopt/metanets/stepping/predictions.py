"""Updates that a metanet predicts for the parameters of a graph: all at once, or piece
by piece."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import NUM_COLUMNS, features_of
from ngopt.metanets.graph_data.feature_sources import RawFeatures
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping.context import StepPlan
from ngopt.metanets.update_mlp import Predictor


class Update(NamedTuple):
    """The prediction for a parameter, or for some of its rows; see `Change`."""

    position: int
    values: Tensor
    rows: slice | None = None


class Predictions:
    """Updates that a metanet predicts for the parameters of a graph."""

    def __init__(self, metanet: Metanet, graph: NeuralGraph):
        self.metanet = metanet
        self.graph = graph
        self._predictor: Predictor | None = None
        # what it was made for
        self._weight: Tensor | None = None
        self._options: tuple | None = None

    def features(
        self, columns: Sequence[Sequence[Tensor]], predictor: Predictor | None
    ) -> Tensor:
        """Weight, gradient and momenta, preprocessed: (numel, 14); zeros where absent.

        predictor: where to write them; without one autograd may follow.
        """
        like = self._like()
        zero = like.new_zeros(())
        rows, flat = [], []
        for row, spec in zip(columns, self.graph.parameters, strict=True):
            rows.append(row or [zero.expand(spec.shape)] * NUM_COLUMNS)
        for column in zip(*rows, strict=True):
            moved = [x.to(like.device) for x in column]
            flat.append(self.graph.flatten(moved))
        out = None if predictor is None else predictor.features(self.graph.numel)
        features = features_of(flat, like, out)
        if all(columns):
            return features
        masks = []
        for row, spec in zip(columns, self.graph.parameters, strict=True):
            masks.append(like.new_full((spec.numel, 1), bool(row)))
        mask = torch.cat(masks)
        return features * mask if out is None else features.mul_(mask)

    def piece_by_piece(
        self, plan: StepPlan, source: RawFeatures, context: Sequence[Tensor] | None
    ) -> Iterator[list[Update]]:
        """Updates of a large network, some parameters at a time; in place, some rows
        of a long one."""
        like = self._like()
        sizes = {i: self.graph.parameters[i].numel for i in plan.present}
        longest = chunking.chunk_size(chunking.UPDATED_ELEMENTS, like.device)
        limit = chunking.total_chunk_size(chunking.CONCATENATED_ELEMENTS, like)
        for group in chunking.batches_up_to(sizes, limit):
            columns = source.joined(group)
            if context is not None:
                contexts = [context[i] for i in group]
                columns.append(chunking.concatenated(contexts))
            if plan.in_place and sizes[group[0]] > longest:
                spec = self.graph.parameters[group[0]]
                width = spec.numel // spec.shape[0]
                most = max(1, longest // width)
                for rows in chunking.even_slices(spec.shape[0], most):
                    elements = slice(rows.start * width, rows.stop * width)
                    values = self._updates([x[elements] for x in columns])
                    yield [Update(group[0], values, rows)]
            else:
                numels = [sizes[i] for i in group]
                values = self._updates(columns).split(numels)
                yield list(map(Update, group, values))

    def _updates(self, columns: Sequence[Tensor]) -> Tensor:
        """Updates (n,) of some elements.

        columns: weight, gradient and momenta, (n,) each, and context, (n, d), if any.
        """
        like = self._like()
        capacity = chunking.total_chunk_size(chunking.ELEMENTS, like)
        if not torch.compiler.is_compiling():
            raw, context = _split_context(columns)
            return self.predictor(capacity).of_columns(raw, context)
        # a compiled step plans its own memory
        update = like.new_empty(len(columns[0]))
        count = chunking.ceil_div(len(update), capacity)
        for out, *piece in chunking.pieces([update, *columns], count):
            raw, context = _split_context(piece)
            features = features_of(raw, like)
            if context is not None:
                context = context.to(features)
            out.copy_(self.metanet.updates(features, context))
        return update

    def predictor(self, capacity: int) -> Predictor:
        """The metanet's, made once for its weights, their device and dtype."""
        like = self._like()
        options = capacity, like.device, like.dtype
        is_same = self._weight is like and self._options == options
        if self._predictor is None or not is_same:
            self._predictor = self.metanet.predictor(capacity)
            self._weight = like
            self._options = options
        self._predictor.refresh()
        return self._predictor

    def _like(self) -> Tensor:
        return next(self.metanet.parameters())


def _split_context(columns: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor | None]:
    has_context = len(columns) > NUM_COLUMNS
    return columns[:NUM_COLUMNS], columns[NUM_COLUMNS] if has_context else None
