"""The neural graph of a sequential module, from its layers alone."""

from torch import nn

from ngopt.graph.graph_builder import GraphBuilder, slot_shape
from ngopt.graph.groups_and_blocks import ParameterSpec, View
from ngopt.graph.neural_graph import NeuralGraph

# Common modules that treat all neurons alike, or turn positions of a map into slots,
# with their names in a trace; None for those that only move values.
FUNCTION_MODULES: dict[type[nn.Module], str | None] = {
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.Dropout: "dropout",
    nn.Dropout2d: "feature_dropout",
    nn.ELU: "elu",
    nn.Flatten: None,
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.Identity: None,
    nn.LeakyReLU: "leaky_relu",
    nn.LogSoftmax: "log_softmax",
    nn.MaxPool2d: "max_pool2d",
    nn.Mish: "mish",
    nn.ReLU: "relu",
    nn.ReLU6: "hardtanh",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}


def sequential_graph(model: nn.Module) -> NeuralGraph | None:
    """The graph of a (nested) `nn.Sequential` of Linear, Conv2d and the modules above.

    None for other modules, if a layer does not fit the layer before, or if two layers
    share a weight.
    """
    leaves = []
    for _, module in model.named_modules(remove_duplicate=False):
        if type(module) is not nn.Sequential:
            if module in leaves or next(module.children(), None) is not None:
                return None
            leaves.append(module)
    named = dict(model.named_parameters())
    position = {p: i for i, p in enumerate(named.values())}
    builder = GraphBuilder([ParameterSpec.of(*item) for item in named.items()])
    last: int | None = None
    is_map = True  # whether neurons are channels, whose positions a flatten makes slots
    functions: list[str] = []  # applied to the last neurons
    for module in leaves:
        if type(module) in FUNCTION_MODULES:
            name = FUNCTION_MODULES[type(module)]
            functions += [] if name is None else [name]
            continue
        is_conv = isinstance(module, nn.Conv2d)
        is_plain = is_conv and module.groups == 1 and module.padding_mode == "zeros"
        if not (isinstance(module, nn.Linear) or is_plain):
            return None
        if last is None:
            last = builder.add_group("input", module.weight.shape[1])
        builder.note_functions(last, functions)
        functions = []
        weight = position[module.weight]  # type: ignore[index]
        size = builder.groups[last].size
        slots = slot_shape(tuple(module.weight.shape), size)
        fits = is_map or module.weight.shape[1] == size
        if slots is None or not fits or weight in builder.views():
            return None
        last = builder.add_weight(weight, last, slots)
        if module.bias is not None:
            bias = View.whole(position[module.bias], tuple(module.bias.shape))
            builder.add_bias(bias, last)
        is_map = is_conv
    if last is not None:
        builder.note_functions(last, functions)
    return builder.build()
