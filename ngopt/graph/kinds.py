"""Kinds of nodes, edges and biases. Weights files depend on the order of each list."""

from collections.abc import Sequence

BIAS_KINDS = (
    "bias", "recurrent", "gamma", "beta", "slope", "scale", "shift", "value", "other",
)  # fmt: skip
"""What a parameter does to single neurons.

    bias        is added by the layer that produces them
    recurrent   the bias of a recurrent layer's state; the initial hidden state of an
                LSTM
    gamma       scale of a norm
    beta        shift of a norm
    slope       of a parametric activation, or another function of activation and
                parameter
    scale       a bare parameter times activations; a factor or summand of a weight
    shift       a bare parameter plus activations
    value       a bare parameter in place of activations: a class token, a first state
    other       elements that the network does not use, and kinds of user-defined rules
"""

EDGE_KINDS = (
    "weight", "flatten", "residual", "left", "right", "pool", "spread", "copy",
    *BIAS_KINDS,
)  # fmt: skip
"""What edges mean. Edges without elements have the value 1.

    weight      of a linear map, a convolution, an embedding
    flatten     of a linear map that reads each source several times, as the channels
                of a flattened map
    recurrent   of a recurrent layer's state; without elements, of the initial hidden
                state of an LSTM
    gamma, slope, scale ...   one scale per neuron, on edges from one neuron to one
    residual    into the nodes of a sum; the initial state of a recurrent layer
    left, right the two operands of a product, or of a sum or difference that has a
                node of its own
    pool        into a node that stands for several: a reduction, a head, a norm's group
    spread      out of such a node, or of a node for a shared parameter, constant or
                function
    copy        to a node that stands for the same neuron in another layout

In a parameter graph all of `BIAS_KINDS` are edges.
"""

NODE_KINDS = (
    "neuron", "token", "product", "head", "group", "pool", "position", "copy",
    "parameter", "constant", *BIAS_KINDS,
)  # fmt: skip
"""What nodes are. In a parameter graph, nodes of parameters have their bias kind.

    neuron      a unit of a layer, a channel of a map, an entry of the input
    token       a row of an embedding
    product     of two neurons
    head        of an attention: the sum of the products of its queries and keys
    group       channels or rows that are normalised together
    pool        many neurons reduced to one
    position    a place of a sequence or map, for weights that mix places
    copy        a neuron in the layout that a second weight reads
    parameter   an element that several neurons share
    constant    a number or a function by which neurons differ
"""


def kind_code(kind: str, kinds: Sequence[str]) -> int:
    """Position of a kind in a list; kinds of user-defined rules count as the last,
    "other"."""
    return kinds.index(kind) if kind in kinds else len(kinds) - 1
