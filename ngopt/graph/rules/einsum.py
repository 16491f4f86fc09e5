"""Einstein sums, and functions that are such sums, as matrix products."""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import rearranged, transposed
from ngopt.graph.rules.linear import linear, matmul
from ngopt.graph.rules.pointwise import addition, multiplication
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Product, Unknown, Value

ELLIPSIS = "αβγδεζηθικλμνξοπρστυφχψω"  # letters that no equation has
SUMS = {
    aten.addmm: "ij,jk->ik",
    aten._sparse_addmm: "ij,jk->ik",
    aten.baddbmm: "bij,bjk->bik",
    aten.addbmm: "bij,bjk->ik",
    aten.addmv: "ij,j->i",
    aten.addr: "i,j->ij",
}
"""Functions that add a product to their first operand."""

Factor = tuple[Value, str]
"""A tensor, and the names of its axes."""


@register_layer_rule(aten.einsum)
def einsum(
    tracer: Tracer, call: Node, equation: str, operands: Sequence[Value], *_, **__
) -> Value:
    """Products of neurons and weights, one after the other, in the order of the
    operands that share indices."""
    terms = _terms(equation, operands)
    *inputs, output = terms
    if all(isinstance(x, Elements) for x in operands) and len(output) == 2:
        shape = tracer.shape_of(call)
        return Product(shape, parameters=operands, terms=inputs, axes=output)
    if any(len(set(term)) < len(term) for term in terms):  # diagonals
        return tracer.unknown(call)
    lengths = [n for x in operands for n in x.shape]
    sizes = dict.fromkeys("".join(inputs), 1)  # a length of 1 is broadcast
    sizes |= {i: n for i, n in zip("".join(inputs), lengths, strict=True) if n != 1}
    factors: list[Factor] = []
    for operand, term in zip(operands, inputs, strict=True):
        shape = [sizes[name] for name in term]
        factors.append((rearranged(operand, lambda x, n=shape: x.expand(n)), term))
    for name, size in sizes.items():
        if sum(name in term for term in terms) == 1:  # summed in one operand alone
            factors.append((torch.ones(size), name))
    # neurons first, and weights last: matmul takes a weight with a batch of its own on
    # the right alone
    factors.sort(key=lambda f: isinstance(f[0], Elements) - isinstance(f[0], Neurons))
    x, names = factors.pop(0)
    while factors:
        shared = [bool(set(names) & set(term)) for _, term in factors]
        y, term = factors.pop(shared.index(True) if any(shared) else 0)
        wanted = {*output, *"".join(later for _, later in factors)}
        kept = "".join(n for n in dict.fromkeys(names + term) if n in wanted)
        x = _product(tracer, call, (x, names), (y, term), kept)
        names = kept
    return rearranged(x, lambda y: y.permute(_places(output, names)))


def _product(tracer: Tracer, call: Node, x: Factor, y: Factor, kept: str) -> Value:
    """The product of two tensors, summed over the indices that are not kept."""
    a, b = x[1], y[1]
    left, right = _without(kept, b), _without(kept, a)
    batch, summed = _without(kept, left + right), _without(a, kept)
    matrix, other = _matrix(x, batch, left, summed), _matrix(y, batch, right, summed)
    if summed:
        shape = torch.Size((*matrix.shape[:-1], other.shape[-2]))
        product = matmul(tracer, call, matrix, transposed(other), shape)
    else:
        product = multiplication(tracer, call, matrix, transposed(other))
    sizes = dict(zip(a + b, (*x[0].shape, *y[0].shape), strict=True))
    if not isinstance(product, Neurons):
        return Unknown(torch.Size(sizes[name] for name in kept))
    order = batch + left + right
    labels = product.labels.reshape([sizes[name] for name in order])
    return replace(product, labels=labels.permute(_places(kept, order)))


def _matrix(factor: Factor, batch: str, rows: str, columns: str) -> Value:
    """A tensor (*batch, rows, columns), with one axis for all indices of each part."""
    value, names = factor
    order = _places(batch + rows + columns, names)
    first, last = len(batch), len(batch + rows)

    def arranged(x: Tensor) -> Tensor:
        shape = x.permute(order).shape
        flat = shape[first:last].numel(), shape[last:].numel()
        return x.permute(order).reshape(*shape[:first], *flat)

    return rearranged(value, arranged)


def _terms(equation: str, operands: Sequence[Value]) -> list[str]:
    """The indices of every operand and of the result, with letters for '...'."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = sorted(set(inputs) - set(".,"))
        output = "".join(name for name in letters if inputs.count(name) == 1)
        output = "..." + output if "..." in inputs else output
    counts = []
    for term, operand in zip(terms, operands, strict=True):
        counts.append(len(operand.shape) - len(term.replace("...", "")))
    letters = ELLIPSIS[: max(counts)]
    replaced = []
    for term, count in zip(terms, counts, strict=True):
        replaced.append(term.replace("...", letters[len(letters) - count :]))
    return [*replaced, output.replace("...", letters)]


@register_layer_rule(*SUMS)
def sum_with_product(
    tracer: Tracer, call: Node, x: Value, a: Value, b: Value, *, beta=1, alpha=1
) -> Value:
    """beta x + alpha a b."""
    is_layer = packet_of(call) is aten.addmm and isinstance(b, Elements)
    if is_layer and isinstance(x, Elements) and x.shape == b.shape[1:]:
        return linear(tracer, call, a, transposed(b), x)
    product = einsum(tracer, call, SUMS[packet_of(call)], (a, b))
    if not beta:
        return product
    # the sum of two layers is one layer if nothing else uses them, as here x may be a
    x = Neurons(x.labels) if isinstance(x, Neurons) else x
    return addition(tracer, call, x, product, alpha=alpha / beta)


@register_layer_rule(*functions("outer ger"))
def outer(tracer: Tracer, call: Node, a: Value, b: Value) -> Value:
    return tensordot(tracer, call, a, b, (), ())


@register_layer_rule(aten.inner, aten.tensordot)
def tensordot(
    tracer: Tracer, call: Node, a: Value, b: Value, *dims: Sequence[int]
) -> Value:
    """dims: of a and of b that are summed, by default the last ones."""
    a_dims, b_dims = dims or ([-1], [-1])
    a_names = list(ascii_lowercase[: len(a.shape)])
    b_names = list(ascii_uppercase[: len(b.shape)])
    for d, other in zip(a_dims, b_dims, strict=True):
        b_names[other] = a_names[d]
    return _sum_over_shared(tracer, call, (a, b), ("".join(a_names), "".join(b_names)))


@register_layer_rule(*functions("linalg_multi_dot chain_matmul"))
def multi_dot(tracer: Tracer, call: Node, tensors: Sequence[Value], **_) -> Value:
    """The first may be a row, and the last a column."""
    terms = [ascii_lowercase[k : k + 2] for k in range(len(tensors))]
    terms[0] = terms[0][-len(tensors[0].shape) :]
    terms[-1] = terms[-1][: len(tensors[-1].shape)]
    return _sum_over_shared(tracer, call, tensors, terms)


def _sum_over_shared(
    tracer: Tracer, call: Node, operands: Sequence[Value], terms: Sequence[str]
) -> Value:
    """Sums over the indices that occur twice."""
    names = "".join(terms)
    output = "".join(name for name in names if names.count(name) == 1)
    return einsum(tracer, call, f"{','.join(terms)}->{output}", operands)


@register_layer_rule(aten.kron)
def kron(tracer: Tracer, call: Node, a: Value, b: Value) -> Value:
    shape = tracer.shape_of(call)
    are_elements = isinstance(a, Elements) and isinstance(b, Elements)
    if not are_elements or not len(a.shape) == len(b.shape) == 2:
        return tracer.unknown(call)
    return Product(shape, parameters=(a, b), terms=("ij", "kl"), axes=("ik", "jl"))


def _without(names: str, others: str) -> str:
    return "".join(name for name in names if name not in others)


def _places(names: str, order: str) -> list[int]:
    return list(map(order.index, names))
