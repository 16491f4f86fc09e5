"""What a metanet predicts for the parameters of a graph: all at once, or piece by
piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.chunking import concatenated
from ngopt.graph.core import NeuralGraph
from ngopt.metanets.features import MOMENTA, features_of
from ngopt.metanets.graph_data.feature_sources import RawFeatures
from ngopt.metanets.graph_data.graph_tensors import even_slices
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.update_mlp.predictor import Predictor


class Update(NamedTuple):
    """What the metanet predicts for a parameter, or for some rows of it; see `Change`."""

    position: int
    values: Tensor
    rows: slice | None = None


class Predictions:
    """Those of a metanet on a graph."""

    def __init__(self, metanet: Metanet, graph: NeuralGraph):
        self.metanet, self.graph = metanet, graph
        self._kept_predictor: tuple[Tensor, tuple, Predictor] | None = None

    def features(
        self,
        columns: Sequence[Sequence[Tensor]],
        predictor: Predictor | None,
    ) -> Tensor:
        """Weight, gradient and momenta, preprocessed: (numel, 14); zeros where absent.

        predictor: where to put them; without one autograd may follow.
        """
        like, specs = self._like(), self.graph.parameters
        rows = zip(columns, specs, strict=True)
        nothing = [like.new_zeros(())] * (2 + len(MOMENTA))
        whole = [
            some or [zero.expand(spec.shape) for zero in nothing] for some, spec in rows
        ]
        flat = [
            self.graph.flatten([x.to(like.device) for x in column])
            for column in zip(*whole, strict=True)
        ]
        out = None if predictor is None else predictor.features(self.graph.numel)
        features = features_of(flat, like, out)
        if all(columns):
            return features
        rows = zip(columns, specs, strict=True)
        is_present = [like.new_full((spec.numel, 1), bool(some)) for some, spec in rows]
        is_present = torch.cat(is_present)
        return features * is_present if out is None else features.mul_(is_present)

    def all_at_once(
        self,
        features: Tensor,
        predictor: Predictor | None,
        said: Sequence[Tensor] | None,
        present: Sequence[int],
    ) -> list[Update]:
        """From all features, which a predictor has already; without one autograd may
        follow."""
        context = None if said is None else torch.cat(list(said)).to(features)
        if predictor is None:
            values = self.metanet.updates(features, context)
        else:
            values = predictor.predicted(len(features), context)
        found = self.graph.unflatten(values)
        return [Update(i, found[i]) for i in present]

    def piece_by_piece(
        self,
        source: RawFeatures,
        said: Sequence[Tensor] | None,
        present: Sequence[int],
        in_place: bool,
    ) -> Iterator[list[Update]]:
        """The same for a large network, some parameters at a time; in place, some rows
        of a long one."""
        specs, like = self.graph.parameters, self._like()
        sizes = {i: specs[i].numel for i in present}
        most = chunking.amount(chunking.MOVED, like.device)
        for some in chunking.together(sizes, chunking.limit(chunking.JOINED, like)):
            columns = source.joined(some)
            if said is not None:
                columns.append(concatenated([said[i] for i in some]))
            if in_place and sizes[some[0]] > most:
                yield from self._row_by_row(most, some[0], columns)
            else:
                found = self._updates(columns).split([sizes[i] for i in some])
                yield list(map(Update, some, found))

    def _row_by_row(
        self, most: int, position: int, columns: Sequence[Tensor]
    ) -> Iterator[list[Update]]:
        """Updates of a long parameter, of about `most` elements at a time."""
        spec = self.graph.parameters[position]
        row = spec.numel // spec.shape[0]
        for rows in even_slices(spec.shape[0], max(1, most // row)):
            elements = slice(rows.start * row, rows.stop * row)
            values = self._updates([x[elements] for x in columns])
            yield [Update(position, values, rows)]

    def _updates(self, columns: Sequence[Tensor]) -> Tensor:
        """Updates (n,) of some elements, from weight, gradient, momenta, (n,), and
        context, (n, d), if any."""
        like, raw = self._like(), 2 + len(MOMENTA)
        room = chunking.limit(chunking.ROWS, like)
        if not torch.compiler.is_compiling():
            context = columns[raw] if len(columns) > raw else None
            return self.predictor(room).of_columns(columns[:raw], context)
        # a compiled step plans its own memory
        update = like.new_empty(len(columns[0]))
        count = max(1, -(-len(update) // room))
        pieces = [x.tensor_split(count) for x in (update, *columns)]
        for out, *piece in zip(*pieces, strict=True):
            features = features_of(piece[:raw], like)
            context = piece[raw].to(features) if len(piece) > raw else None
            out.copy_(self.metanet.updates(features, context))
        return update

    def predictor(self, room: int) -> Predictor:
        """The metanet's, kept from step to step while it has the same weights."""
        like = self._like()
        wanted = room, like.device, like.dtype
        kept = self._kept_predictor
        if kept is None or kept[0] is not like or kept[1] != wanted:
            kept = self._kept_predictor = (
                like,
                wanted,
                self.metanet.predictor(room),
            )
        predictor = kept[2]
        predictor.refresh()
        return predictor

    def _like(self) -> Tensor:
        return next(self.metanet.parameters())
