import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meta_train.problems.networks.convolutional import paper_cnn
from ngopt import build_graph
from ngopt.graph import GraphValues, to_edge_list
from ngopt.graph.inference.from_sequential import sequential_graph
from ngopt.graph.transforms import reordered
from tests.equivariance import permute, random_permutations
from tests.graph_checks import assert_equal, assert_inverse, random_values
from tests.networks import CNN_INPUT, cnn, mlp
from tests.zoo import zoo_graph


def test_hand_written_graph():
    graph = build_graph(mlp(2, 3, 1))
    assert [(g.size, g.role, g.depth) for g in graph.groups] == [
        (2, "input", 0),
        (3, "hidden", 0.5),
        (1, "output", 1),
    ]
    edges = to_edge_list(graph)
    # Nodes 0, 1 | 2, 3, 4 | 5. Parameters: weight (3, 2), bias (3,), weight (1, 3),
    # bias (1,).
    expected = [
        (0, 2, 0, 0), (1, 2, 0, 1), (0, 3, 0, 2), (1, 3, 0, 3), (0, 4, 0, 4),
        (1, 4, 0, 5),
        (2, 5, 2, 0), (3, 5, 2, 1), (4, 5, 2, 2),
    ]  # fmt: skip
    slots = edges.parameter[:, 0], edges.element[:, 0]
    rows = zip(edges.sources, edges.targets, *slots, strict=True)
    assert [tuple(int(x) for x in edge) for edge in rows] == expected
    assert edges.block.tolist() == [0] * 6 + [1] * 3
    assert edges.node.tolist() == [2, 3, 4, 5]
    assert edges.node_parameter.tolist() == [[1], [1], [1], [3]]
    assert edges.node_element.tolist() == [[0], [1], [2], [0]]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int64],
)
@pytest.mark.parametrize("features", [(), (3,), (2, 2)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("network", ["cnn", "overlapping"])
def test_gather_scatter_identity(dtype, features, batch, network):
    graph = build_graph(cnn()) if network == "cnn" else zoo_graph(network)
    values = []
    for spec in graph.parameters:
        shape = (*batch, *spec.shape, *features)
        value = 1000 * torch.randn(shape, dtype=torch.complex64)
        values.append(value if dtype.is_complex else value.real.to(dtype))
    assert_equal(graph.scatter(graph.gather(values, len(batch)), len(batch)), values)
    flat = graph.flatten(values, len(batch))
    assert flat.shape == (*batch, graph.numel, *features)
    assert_equal(graph.unflatten(flat, len(batch)), values)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float64])
def test_pairs_of_a_complex_parameter_without_complex_numbers_stay_pairs(dtype):
    graph = build_graph([torch.randn(3, 2, dtype=torch.complex64)])
    pairs = torch.arange(12).reshape(3, 2, 2).to(dtype)
    expected = torch.view_as_complex(pairs) if dtype == torch.float64 else pairs
    assert_equal(graph.scatter(graph.gather([pairs])), [expected])


def uses_of(graph, features=2):
    """Parameter, elements (n,) and values (n, features) of every place,
    and all of them as values on the graph."""
    places = graph.gather(
        [torch.arange(spec.numel).reshape(spec.shape) for spec in graph.parameters]
    )
    uses, parts = [], []
    for entries, part in zip((graph.biases, graph.weights), places, strict=True):
        parts.append([torch.randn(*e.shape, features).double() for e in part])
        for entry, elements, value in zip(entries, part, parts[-1], strict=True):
            flat = elements.flatten(), value.reshape(-1, features)
            uses.append((entry.view.parameter, *flat))
    return uses, GraphValues(*map(tuple, parts))


def test_parameters_in_another_order_have_the_same_places():
    graph = build_graph([nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))])
    order = [1, 0]
    values = random_values(graph)
    other = reordered(graph, order)
    assert [spec.shape for spec in other.parameters] == [(3,), (3, 2)]
    assert other.inferred == graph.inferred[::-1]
    moved = [values[i] for i in order]
    for part, expected in zip(other.gather(moved), graph.gather(values), strict=True):
        assert_equal(part, expected)
    assert_inverse(other, moved)
    assert reordered(other, order) == graph


def test_uses_that_overlap_are_averaged_element_by_element():
    graph = zoo_graph("overlapping")
    uses, values = uses_of(graph)
    count = 0
    for i, means in enumerate(graph.scatter(values)):
        for element, mean in enumerate(means.reshape(-1, 2)):
            rows = [v[e == element] for parameter, e, v in uses if parameter == i]
            uses_of_element = torch.cat(rows)
            count += len(uses_of_element) > 1
            torch.testing.assert_close(mean, uses_of_element.mean(0))
    # of the weight (5, 6) the columns before 4 and the corner behind (3, 3), which meet
    # in one; of the bias, two
    assert count == 5 * 4 + 2 * 3 - 2 + 2


def test_means_of_uses_that_overlap_have_derivatives():
    graph = zoo_graph("overlapping")
    _, values = uses_of(graph)
    n = len(values.biases)
    flat = (*values.biases, *values.edges)

    def means(*tensors):
        return tuple(graph.scatter(GraphValues(tensors[:n], tensors[n:])))

    assert torch.autograd.gradcheck(means, [t.requires_grad_() for t in flat])
    tangents = tuple(torch.randn_like(t) for t in flat)
    expected = means(*tangents)  # it is linear
    torch.testing.assert_close(torch.func.jvp(means, flat, tangents)[1], expected)
    mapped = torch.func.vmap(means)(*(tangent[None] for tangent in tangents))
    torch.testing.assert_close(tuple(mean[0] for mean in mapped), expected)


def test_every_element_has_one_place():
    graph = build_graph(cnn())
    edges = to_edge_list(graph)
    parameters = torch.cat([edges.parameter.flatten(), edges.node_parameter.flatten()])
    elements = torch.cat([edges.element.flatten(), edges.node_element.flatten()])
    numbers = zip(parameters.tolist(), elements.tolist(), strict=True)
    placed = sorted(number for number in numbers if number[0] >= 0)
    sizes = enumerate(spec.numel for spec in graph.parameters)
    assert placed == [(i, e) for i, size in sizes for e in range(size)]


def topology(graph):
    return (
        [(g.size, g.role, g.depth) for g in graph.groups],
        [(b.view, b.source, b.target, b.slots) for b in graph.blocks],
        graph.biases,
    )


MODELS = {
    "mlp": mlp(5, 7, 4, 3),
    "square mlp": mlp(5, 8, 8, 8, 3),
    "cnn": cnn(),
    "fm-16": paper_cnn(1, (16, 32, 32)),
    "c10-32": paper_cnn(3, (32, 64, 64)),
    "linear": nn.Linear(4, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_alone_give_the_traced_topology(name):
    model = MODELS[name]
    traced = build_graph(model)
    assert topology(build_graph(model.parameters())) == topology(traced)
    assert topology(build_graph(model.named_parameters())) == topology(traced)


def run_graph(graph, values, model, inputs):
    """The output of a sequential network, with the weights of its layers read from
    nodes and edges.

    graph, values: of the network, whose parameters are not read.
    """
    blocks = iter(zip(graph.blocks, values.edges, strict=True))
    rows = zip(graph.biases, values.biases, strict=True)
    biases = {bias.group: value.squeeze(1) for bias, value in rows}
    states, last = inputs, graph.blocks[0].source
    for module in model:
        if isinstance(module, nn.Linear | nn.Conv2d):
            block, edges = next(blocks)
            assert block.source == last
            last = block.target
            bias = biases.get(block.target)
            weight = edges.squeeze(0)
            if isinstance(module, nn.Linear):
                states = F.linear(states, weight.flatten(1), bias)
            else:
                kernel = weight.unflatten(2, block.slot_shape)
                slides = module.stride, module.padding, module.dilation
                states = F.conv2d(states, kernel, bias, *slides)
        else:
            states = module(states)
    assert next(blocks, None) is None
    return states


@pytest.mark.parametrize(
    ("model", "shape"),
    [(mlp(5, 7, 4), (5,)), (cnn(), CNN_INPUT), (paper_cnn(1, (4, 5, 6)), (1, 28, 28))],
    ids=["mlp", "cnn", "paper"],
)
def test_running_the_graph_is_running_the_network(model, shape):
    def run(params):
        return run_graph(graph, graph.gather(params), model, inputs)

    model = model.double()
    graph = build_graph(model)
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    params = [p.detach() for p in model.parameters()]
    expected = model(inputs)
    torch.testing.assert_close(run(params), expected, rtol=0, atol=1e-12)
    # and hidden neurons may be permuted without changing the function, inputs may not
    generator = torch.Generator().manual_seed(0)
    hidden = permute(graph, params, random_permutations(graph, generator))
    torch.testing.assert_close(run(hidden), expected, rtol=0, atol=1e-12)
    order = random_permutations(graph, generator, roles=("output",))
    output = permute(graph, params, order)
    assert (run(output) - expected).abs().max() > 1e-3


def test_activations_of_inputs_and_outputs():
    model = nn.Sequential(
        nn.Dropout(), nn.Tanh(), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(-1)
    )
    for graph in (sequential_graph(model), build_graph(model, torch.randn(2, 4))):
        assert [group.activation for group in graph.groups] == ["tanh", "softmax"]


def test_attention_projections_are_not_chained():
    projections = [nn.Linear(8, 8) for _ in range(4)]
    graph = build_graph([p for layer in projections for p in layer.parameters()])
    assert {b.source for b in graph.blocks}.isdisjoint({b.target for b in graph.blocks})


def test_parameters_that_do_not_fit_are_components():
    shapes = [(5, 3), (5,), (6,), (4, 7), (), (2, 4, 3), (9,)]
    graph = build_graph([torch.zeros(s) for s in shapes])
    assert_inverse(graph, random_values(graph))
    connected = [
        (b.view.parameter, before.view.parameter)
        for before, b in itertools.pairwise(graph.blocks)
        if b.source == before.target
    ]
    assert connected == [(5, 3)]
    assert [g.role for g in graph.groups].count("isolated") == 3
    assert "unconnected" in graph.summary()


def test_summary_names_layers_and_counts():
    text = build_graph(paper_cnn(1, (16, 32, 32))).summary()
    assert "16 -> 32" in text
    assert "3x3" in text
    assert "14,378 parameter elements" in text
    assert "1 component, 0 elements unconnected" in text


def test_errors_name_the_offender():
    with pytest.raises(ValueError, match="at least one parameter"):
        build_graph([])
    with pytest.raises(ValueError, match="got int"):
        build_graph([3])
    graph = build_graph(mlp(2, 3, 1))
    with pytest.raises(ValueError, match="expected 4 values, one per parameter; got 1"):
        graph.gather([torch.zeros(3, 2)])
    with pytest.raises(ValueError, match=r"expected shape \(3,\) .*'0.bias'"):
        graph.gather([torch.zeros(shape) for shape in ((3, 2), 4, (1, 3), 1)])
