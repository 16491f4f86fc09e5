"""The per-parameter features of the paper: weight, gradient and momenta, through log
and sign."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from math import ceil, exp

import torch
from torch import (
    Size,
    Tensor,
    _foreach_add_,
    _foreach_clamp_max_,
    _foreach_clamp_min,
    _foreach_lerp_,
)

from ngopt import chunking
from ngopt.functional import Gradients, Record
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.packing import PackedState, Packing, PaddedRows

# Metz et al. 2019; Kofinas et al. 2024, section 4.3.
DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
MOMENTA = tuple(f"exp_avg_{i}" for i in range(len(DECAYS)))
"""Keys of a record: one momentum for each decay."""
LERP_WEIGHTS = [1 - decay for decay in DECAYS]
STEP = "step"
"""Key of a record: the number of updates so far."""
# Cut-off of the preprocessing: magnitudes below exp(-p)
# are treated linearly (Andrychowicz et al. 2016, App. A).
LOG_CUTOFF = 10.0
CUTOFF = exp(-LOG_CUTOFF)
NUM_COLUMNS = 2 + len(DECAYS)
NUM_FEATURES = 2 * NUM_COLUMNS
# Gradients are clipped to this in momenta, so that differences of two are finite.
MAX_GRADIENT = torch.finfo(torch.float32).max / 4


def next_records(grads: Gradients, state: Sequence[Record]) -> list[Record]:
    """New records of parameters with a gradient: their momenta and numbers of steps.

    Momenta are exponential moving averages of the gradient, without bias correction: m
    <- decay * m + (1 - decay) * g.
    """
    records = []
    for grad, old in zip(grads, state, strict=True):
        new = dict(old)
        if grad is not None:
            clipped = grad.to(old[MOMENTA[0]].dtype)
            clipped = clipped.clamp(-MAX_GRADIENT, MAX_GRADIENT)
            for key, weight in zip(MOMENTA, LERP_WEIGHTS, strict=True):
                new[key] = old[key].lerp(clipped, weight)
            new[STEP] = old[STEP] + 1
        records.append(new)
    return records


def update_records_(grads: Gradients, state: Sequence[Record], limit: int) -> None:
    """`next_records` in place.

    limit: elements at once, whose gradients are copied.
    """
    present, sizes = {}, {}
    for i, grad in enumerate(grads):
        if grad is not None:
            present[i] = grad
            sizes[i] = grad.numel()
    for group in chunking.batches_up_to(sizes, limit):
        momenta = [state[i][key] for i in group for key in MOMENTA]
        gradients = [present[i] for i in group]
        # more than 1 only of a long parameter, which is alone in its group
        count = ceil(sizes[group[-1]] / limit)
        for piece in chunking.pieces([*momenta, *gradients], count):
            _lerp_(list(piece[: len(momenta)]), piece[len(momenta) :])
    _foreach_add_([state[i][STEP] for i in present], 1)


def _lerp_(momenta: list[Tensor], gradients: Sequence[Tensor]) -> None:
    """momenta: all of the first parameter, then all of the second, and so on.

    A function, so that its buffers are freed before those of the next piece are made.
    """
    rows = zip(momenta[:: len(DECAYS)], gradients, strict=True)
    clipped = _foreach_clamp_min([g.to(m.dtype) for m, g in rows], -MAX_GRADIENT)
    _foreach_clamp_max_(clipped, MAX_GRADIENT)
    repeated = [gradient for gradient in clipped for _ in DECAYS]
    _foreach_lerp_(momenta, repeated, LERP_WEIGHTS * len(clipped))


def preprocess(columns: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Log-magnitude and sign of every value (Andrychowicz et al. 2016, App. A, Eq. 4).

    columns: k tensors (*shape). Returns (*shape, 2 k): first the k log-magnitudes, then
    the k signs, each feature together in memory. With p = `LOG_CUTOFF`, a value with
    |x| >= exp(-p) gives (log|x| / p, sign x), a smaller one (-1, exp(p) x). Derivatives
    are finite everywhere, also at zero.

    out: where to put it, features first, (2 k, *shape); without autograd.
    """
    columns = list(columns)
    if torch.is_grad_enabled() and out is None:
        x = torch.stack(columns)
        # in place where a derivative needs nothing that is lost
        log = x.abs().clamp(min=CUTOFF).log().mul_(1 / LOG_CUTOFF)
        sign = x.clamp(-CUTOFF, CUTOFF).mul_(1 / CUTOFF)
        return torch.cat([log, sign]).movedim(0, -1)
    if out is not None:
        torch.stack(columns, out=out.chunk(2)[0])
        return preprocess_in_place(out).movedim(0, -1)
    features = torch.stack([*columns, *columns])  # in which way torch.vmap can follow
    log, sign = features.chunk(2)
    sign.clamp_min_(-CUTOFF).clamp_max_(CUTOFF).mul_(1 / CUTOFF)
    _to_logarithms(log)
    return features.movedim(0, -1)


def finite_features(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`preprocess` of columns in float32 at least, in a dtype; 0 where not finite."""
    precise = torch.promote_types(dtype, torch.float32)
    features = preprocess([column.to(precise) for column in columns]).to(dtype)
    return features.nan_to_num_(0.0, 0.0, 0.0)


def preprocess_in_place(out: Tensor) -> Tensor:
    """`preprocess` of what the first half of `out`, (2 k, *shape), holds."""
    log, sign = out.chunk(2)
    torch.clamp(log, -CUTOFF, CUTOFF, out=sign).mul_(1 / CUTOFF)
    _to_logarithms(log)
    return out


def _to_logarithms(values: Tensor) -> None:
    values.abs_().clamp_min_(CUTOFF).log_().mul_(1 / LOG_CUTOFF)


def features_of(
    columns: Sequence[Tensor], like: Tensor, out: Tensor | None = None
) -> Tensor:
    """`preprocess` in the dtype and on the device of `like`; logarithms in float32 at
    least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    converted = [column.to(like.device, dtype) for column in columns]
    if out is None or out.dtype == dtype:
        return preprocess(converted, out=out).to(like.dtype)
    return out.movedim(0, -1).copy_(preprocess(converted))


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
