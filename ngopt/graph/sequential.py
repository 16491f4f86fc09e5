"""The neural graph from a module: layers, their order and the functions between them."""

from __future__ import annotations

from torch import nn

from ngopt.graph.core import NeuralGraph, ParameterSpec
from ngopt.graph.topology import GraphBuilder, whole

# Modules that are an activation, with the name that a trace finds for it.
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.CELU: "celu",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.LeakyReLU: "leaky_relu",
    nn.LogSoftmax: "log_softmax",
    nn.Mish: "mish",
    nn.ReLU: "relu",
    nn.ReLU6: "hardtanh",
    nn.RReLU: "rrelu",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
    nn.Softmin: "softmax",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
    nn.Tanhshrink: "tanh",
}
# Others that treat all neurons alike, or turn the places of a map into slots.
ALIKE: set[type[nn.Module]] = {
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AlphaDropout,
    nn.AvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.FeatureAlphaDropout,
    nn.Flatten,
    nn.Hardshrink,
    nn.Identity,
    nn.LogSigmoid,
    nn.MaxPool2d,
    nn.Softshrink,
    nn.Softsign,
    nn.Threshold,
    nn.ZeroPad2d,
}


def sequential_graph(model: nn.Module) -> NeuralGraph | None:
    """The graph of a (nested) `nn.Sequential` of Linear, Conv2d and modules in the lists above.

    Returns None when the model is anything else.
    """
    leaves = _sequential_leaves(model)
    if leaves is None or not all(_is_known(module) for module in leaves) or len(set(leaves)) < len(leaves):
        return None
    named = list(model.named_parameters())
    builder = GraphBuilder([ParameterSpec.of(name, p) for name, p in named])
    position = {id(p): i for i, (_, p) in enumerate(named)}
    last: int | None = None
    spatial = True  # whether neurons are channels of a map, which a flatten turns into slots
    first: str | None = None  # what is applied to the network's input
    for module in leaves:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            activation = ACTIVATIONS.get(type(module))
            if last is None:
                first = first or activation
            else:
                builder.add_activation(last, activation)
            continue
        if last is None:
            last = builder.add_group("input", module.weight.shape[1])
            builder.add_activation(last, first)
        slot_shape = _slot_shape(module, builder.groups[last].size, spatial)
        if slot_shape is None or position[id(module.weight)] in builder.placed:
            return None
        last = builder.add_weight(position[id(module.weight)], last, slot_shape)
        if module.bias is not None:
            builder.add_bias(whole(position[id(module.bias)], tuple(module.bias.shape)), last)
        spatial = isinstance(module, nn.Conv2d)
    return builder.build()


def _slot_shape(module: nn.Linear | nn.Conv2d, source_size: int, spatial: bool) -> tuple[int, ...] | None:
    """Slots of a layer's edges from a group of `source_size` neurons, None where they do not fit."""
    inputs = module.weight.shape[1]
    if inputs == source_size:
        return tuple(module.weight.shape[2:])
    if isinstance(module, nn.Linear) and spatial and inputs % source_size == 0:
        return (inputs // source_size,)
    return None


def _sequential_leaves(model: nn.Module) -> list[nn.Module] | None:
    """Leaf modules in the order of the forward pass, None where that order is not known."""
    if type(model) is not nn.Sequential:
        return None if any(True for _ in model.children()) else [model]
    leaves = []
    for child in model:
        inner = _sequential_leaves(child)
        if inner is None:
            return None
        leaves += inner
    return leaves


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) or type(module) in ACTIVATIONS or type(module) in ALIKE
