"""Momenta of a small network in one tensor, for steps in place."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
from torch import Size, Tensor, _foreach_add_

from ngopt.functional import Gradients, Record
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import (
    LERP_WEIGHTS,
    MAX_GRADIENT,
    MOMENTA,
    STEP,
    preprocess_in_place,
)
from ngopt.packing import PackedState, Packing, PaddedRows


class PackedMomenta:
    """Momenta of all parameters of a graph in one tensor, of which records hold views.

    A step makes as many calls for all parameters as for one, and allocates almost
    nothing.

    like: has the dtype and device of the momenta.
    """

    def __init__(self, graph: NeuralGraph, like: Tensor):
        shapes = [Size(spec.shape) for spec in graph.parameters]
        rows = PaddedRows(shapes * len(MOMENTA), lanes=1)
        packing = Packing(
            places=[(i, key) for key in MOMENTA for i in range(len(shapes))],
            join=lambda values: rows.join(values).view(len(MOMENTA), -1),
            split=rows.split,
        )
        self._state = PackedState([packing], view_type=Tensor)
        self._state.names = [spec.name for spec in graph.parameters]
        self._lerp_weights = like.new_tensor(LERP_WEIGHTS).unsqueeze(1)
        self._clipped = like.new_empty(graph.numel)

    def update(
        self,
        params: Sequence[Tensor],
        grads: Gradients,
        records: Sequence[Record],
        out: Tensor,
    ) -> None:
        """Updates the records, none of whose gradients is absent; writes features to
        `out`, (14, n)."""
        (momenta,) = self._state.open(records, in_place=True)
        columns = out.chunk(2)[0]
        torch.cat([p.reshape(-1) for p in params], out=columns[0])
        present = [grad.reshape(-1) for grad in grads if grad is not None]
        gradient = torch.cat(present, out=columns[1])
        torch.clamp(gradient, -MAX_GRADIENT, MAX_GRADIENT, out=self._clipped)
        momenta.lerp_(self._clipped, self._lerp_weights)
        columns[2:] = momenta
        preprocess_in_place(out)
        _foreach_add_([record[STEP] for record in records], 1)
