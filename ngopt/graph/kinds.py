"""Kinds of nodes, edges and biases, and what each means."""

from __future__ import annotations

from collections.abc import Sequence

BIAS_KINDS = (
    "bias",
    "recurrent",
    "gamma",
    "beta",
    "slope",
    "scale",
    "shift",
    "value",
    "other",
)
"""What a parameter does to neurons, one by one.

    bias        is added by the layer that makes them
    recurrent   the bias of a recurrent layer's own state; the hidden state that an LSTM begins with
    gamma       scale of a norm
    beta        shift of a norm
    slope       of an activation, or any other function of both
    scale       a bare parameter times activations; a factor or summand of a weight
    shift       a bare parameter plus activations
    value       a bare parameter in the place of activations: a class token, a first state
    other       elements that the network does not use, and kinds of someone's own
"""

EDGE_KINDS = (
    "weight", "flatten", "residual", "left", "right", "pool", "spread", "copy", *BIAS_KINDS,
)  # fmt: skip
"""What edges mean. Of those without elements the value is 1.

    weight      of a linear map, a convolution, a table
    flatten     of a linear map whose sources come several times, as channels of a flattened map do
    recurrent   of a recurrent layer's own state; without elements, that an LSTM begins with
    gamma, slope, scale ...   a scale that every neuron has of its own, from one to one
    residual    a sum in the nodes of its newer side; the state that a recurrent layer begins with
    left, right the two sides of a product, or of a sum or difference that is a node of its own
    pool        into a node that stands for several: a reduction, a head, a group of a norm
    spread      out of such a node, or of one for what several share: a parameter, a constant, a
                function
    copy        to a node that stands for the same neuron seen in another way

In a parameter graph all of `BIAS_KINDS` are edges.
"""

NODE_KINDS = (
    "neuron", "token", "product", "head", "group", "pool", "position", "copy", "parameter",
    "constant", *BIAS_KINDS,
)  # fmt: skip
"""What nodes are; in a parameter graph also parameters, by what they do.

    neuron      a unit of a layer, a channel of a map, an entry of the input
    token       a row of a table
    product     of two neurons
    head        of an attention: the sum of the products of its queries and keys
    group       channels or rows that are normalised together
    pool        many neurons reduced to one
    position    a place of a sequence or map, for weights that mix places
    copy        a neuron that a second weight sees in another way
    parameter   an element that several neurons share
    constant    a number, or a function, that tells neurons apart
"""


def kind_code(kind: str, kinds: Sequence[str]) -> int:
    """Place of a kind among all; the last of them, "other",
    stands for those of someone's own rules."""
    return kinds.index(kind) if kind in kinds else len(kinds) - 1
