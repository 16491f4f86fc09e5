"""The neural graph from a module: layers, their order and the functions between them."""

from __future__ import annotations

from torch import nn

from ngopt.graph.graph_builder import GraphBuilder, whole
from ngopt.graph.groups_and_blocks import ParameterSpec
from ngopt.graph.neural_graph import NeuralGraph

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
}
# Others that treat all neurons alike, or turn the places of a map into slots, with
# names; None for those that only move what is there.
ALIKE: dict[type[nn.Module], str | None] = {
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AlphaDropout: "alpha_dropout",
    nn.AvgPool2d: "avg_pool2d",
    nn.Dropout: "dropout",
    nn.Dropout2d: "feature_dropout",
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
    nn.Flatten: None,
    nn.Hardshrink: "hardshrink",
    nn.Identity: None,
    nn.LogSigmoid: "log_sigmoid",
    nn.MaxPool2d: "max_pool2d",
    nn.Softshrink: "softshrink",
    nn.Threshold: "threshold",
    nn.ZeroPad2d: None,
}


def sequential_graph(model: nn.Module) -> NeuralGraph | None:
    """The graph of a (nested) `nn.Sequential` of Linear, Conv2d and modules in the
    lists above.

    Returns None when the model is anything else.
    """
    leaves = _sequential_leaves(model)
    if (
        leaves is None
        or not all(_is_known(module) for module in leaves)
        or len(set(leaves)) < len(leaves)
    ):
        return None
    named = list(model.named_parameters())
    builder = GraphBuilder([ParameterSpec.of(name, p) for name, p in named])
    position = {id(p): i for i, (_, p) in enumerate(named)}
    last: int | None = None
    spatial = (
        True  # whether neurons are channels of a map, which a flatten turns into slots
    )
    functions: list[str] = []  # applied to the last neurons, or to the network's input
    for module in leaves:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            name = {**ACTIVATIONS, **ALIKE}[type(module)]
            functions += [] if name is None else [name]
            continue
        if last is None:
            last = builder.add_group("input", module.weight.shape[1])
        builder.note_functions(last, functions)
        functions = []
        slot_shape = _slot_shape(module, builder.groups[last].size, spatial)
        if slot_shape is None or position[id(module.weight)] in builder.placed:
            return None
        last = builder.add_weight(position[id(module.weight)], last, slot_shape)
        if module.bias is not None:
            builder.add_bias(
                whole(position[id(module.bias)], tuple(module.bias.shape)), last
            )
        spatial = isinstance(module, nn.Conv2d)
    if last is not None:
        builder.note_functions(last, functions)
    return builder.build()


def _slot_shape(
    module: nn.Linear | nn.Conv2d, source_size: int, spatial: bool
) -> tuple[int, ...] | None:
    """Slots of a layer's edges from a group of `source_size` neurons,
    None where they do not fit."""
    inputs = module.weight.shape[1]
    if inputs == source_size:
        return tuple(module.weight.shape[2:])
    if isinstance(module, nn.Linear) and spatial and inputs % source_size == 0:
        return (inputs // source_size,)
    return None


def _sequential_leaves(model: nn.Module) -> list[nn.Module] | None:
    """Leaf modules in the order of the forward pass, None where that order is not
    known."""
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
    return (
        isinstance(module, nn.Linear)
        or type(module) in ACTIVATIONS
        or type(module) in ALIKE
    )
