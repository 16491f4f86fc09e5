"""Functions without weights that reduce, rank or mix entries along dimensions."""

from math import prod

from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import is_whole
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import functions, register_layer_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Unknown, Value, same_along

REDUCTIONS = functions("""
mean nanmean sum nansum amax amin aminmax max min median nanmedian mode kthvalue
quantile nanquantile var std var_mean std_mean norm linalg_norm linalg_vector_norm
logsumexp special_logsumexp prod
""")
RANKINGS = functions("sort topk")
SCANS = functions("""
cummax cummin diff fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2
fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn
""")
MAX_ROWS = 4096
"""Different sets of neurons in one reduction, each a node."""


@register_layer_rule(*RANKINGS, *SCANS)
def along(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """Reorders or mixes entries along dimensions, and may change their number.

    Neurons that are the same at all places stay; others may have any rank.
    """
    shape = tracer.shape_of(call)
    dims = _named_dims(tracer, call, len(x.shape))
    if not isinstance(x, Neurons):
        return Unknown(shape)
    labels = tracer.nodes.find(x.labels)
    if all(same_along(labels, d) for d in dims):
        note_function(tracer, call, labels)
    elif packet_of(call) in RANKINGS:
        # the network may also use the ranks
        tracer.pin(labels)
        last = list(range(-len(dims), 0))
        moved = labels.movedim(dims, last)
        lead = moved.shape[: -len(dims)]
        nodes = _pool_nodes(tracer, call, moved.reshape(lead.numel(), -1))
        if nodes is None:
            return Unknown(shape)
        labels = nodes.reshape(*lead, *[1] * len(dims)).movedim(last, dims)
    else:
        return Unknown(shape)
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    return Neurons(labels.expand(shape))


@register_layer_rule(*REDUCTIONS)
def reduction(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """Over positions the neurons stay; different neurons have edges to a new node."""
    shape = tracer.shape_of(call)
    if isinstance(x, Elements) and shape.numel() > 1:
        # one number of all elements does not depend on rows
        tracer.row_normalised.add(x.parameter)
    if not isinstance(x, Neurons):
        # statistics of whole rows are exchanged with the rows
        return Unknown(shape, equivariant=is_whole(tracer, x))
    dims = _named_dims(tracer, call, len(x.shape))
    # without dims all are reduced; other results are not known
    if len(dims) == len(x.shape) and prod(shape) != 1:
        return Unknown(shape)
    moved = tracer.nodes.find(x.labels).movedim(dims, list(range(-len(dims), 0)))
    # several quantiles are several results
    if moved.shape[: -len(dims)].numel() != shape.numel():
        return Unknown(shape)
    rows = moved.reshape(shape.numel(), -1)
    if same_along(rows, 1):
        nodes = rows[:, 0]
        note_function(tracer, call, nodes)
    else:
        nodes = _pool_nodes(tracer, call, rows)
    return Unknown(shape) if nodes is None else Neurons(nodes.reshape(shape))


def _pool_nodes(tracer: Tracer, call: Node, rows: Tensor) -> Tensor | None:
    """A node (r,) for each set of neurons in rows (r, n); None if too many."""
    # no reduction depends on the order
    sets, which = rows.sort(dim=1).values.unique(dim=0, return_inverse=True)
    if len(sets) > MAX_ROWS or (sets <= 0).any():
        return None
    # made_of (n, sets): pools of the inputs at several places may be unified
    nodes = tracer.nodes.new(call.name, len(sets), "pool", sets.T)
    tracer.edges(None, sets, nodes[:, None], "pool")
    for row in sets:
        members, counts = row.unique(return_counts=True)
        # edges of value 1 do not contain how often a neuron is in the sum
        if (counts != counts[0]).any():
            tracer.pin(members)
    return nodes[which]


def _named_dims(tracer: Tracer, call: Node, count: int) -> list[int]:
    """The dimensions along which a function works, of `count`."""
    dims = tracer.argument(call, "dim")
    # for torch an empty list means all dimensions
    if dims is None or dims == []:
        return list(range(count))
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % count for d in dims)
