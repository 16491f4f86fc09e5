import re
import sys
from itertools import chain, combinations
from math import log

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from torch import nn

from meta_train.problems.networks.convolutional import paper_cnn
from ngopt import build_graph
from ngopt.graph.drawing import draw as drawing
from ngopt.graph.drawing.draw import draw
from ngopt.graph.drawing.figure import (
    BOX_WIDTH,
    THICKNESS,
    THIN,
    TIMES,
    boxes_of,
    graph_figure,
    wires_between,
)
from tests.networks import FromFunction, mlp
from tests.zoo import GPT, zoo_graph

NAMES = ["gpt", "encoder layer", "residual", "grouped", "lstm", "projected lstm"]
NAMES += ["gated", "triplane", "deep sets"]


@pytest.fixture(scope="module")
def graphs():
    return {name: zoo_graph(name) for name in NAMES}


def arrows(figure):
    """gid -> the arrow of a wire."""
    patches = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]
    by_gid = {patch.get_gid(): patch for patch in patches}
    assert len(by_gid) == len(patches)
    return by_gid


def boxes(figure):
    """gid -> box."""
    patches = figure.axes[0].patches
    return {p.get_gid(): p for p in patches if isinstance(p, FancyBboxPatch)}


def names(graph):
    """Of the groups in each box, from top to bottom."""
    return [graph.groups[run[0]].name for run in boxes_of(graph)]


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")],
)
def test_the_suffix_decides_the_format(tmp_path, suffix, start):
    backend = matplotlib.get_backend()
    path = tmp_path / f"net{suffix}"
    draw(build_graph(mlp(3, 4, 2)), path)
    content = path.read_bytes()
    assert content.startswith(start)
    assert len(content) > 5000
    assert matplotlib.get_backend() == backend
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("name", ["net.pdf", "net", "net.svg.txt"])
def test_another_suffix_is_an_error(tmp_path, name):
    message = rf"expected a file ending in .png or .svg; got '.*{name}'"
    with pytest.raises(ValueError, match=message):
        draw(build_graph(mlp(3, 4, 2)), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_svg_names_every_group(graphs, name, tmp_path):
    draw(graphs[name], tmp_path / "net.svg")
    content = (tmp_path / "net.svg").read_text()
    labels = re.findall("<!-- (.*) -->", content)  # of every text that is drawn
    for group in graphs[name].groups:
        assert any(label.endswith(group.name[-20:]) for label in labels), group.name
    assert len(re.findall('id="group [0-9]+"', content)) == len(graphs[name].groups)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_an_arrow(graphs, name):
    graph = graphs[name]
    drawn = boxes_of(graph)
    wires = wires_between(graph, drawn)
    assert sorted(chain.from_iterable(wires.values())) == list(range(len(graph.blocks)))
    for wire, blocks in wires.items():
        for block in blocks:
            assert graph.blocks[block].source in drawn[wire.source]
            assert graph.blocks[block].target in drawn[wire.target]
    gids = {f"{wire.source}>{wire.target} {wire.style}" for wire in wires}
    assert arrows(graph_figure(graph)).keys() == gids


@pytest.mark.parametrize("name", NAMES)
def test_boxes_do_not_overlap_and_wires_end_at_them(graphs, name):
    figure = graph_figure(graphs[name])
    drawn = boxes(figure)
    for one, two in combinations(drawn.values(), 2):
        assert two.get_y() + two.get_height() < one.get_y()
    for gid, arrow in arrows(figure).items():
        ends = gid.split()[0].split(">")
        path = arrow._path_original.vertices
        for number, (x, y) in zip(ends, (path[0], path[-1]), strict=True):
            box = drawn[f"group {number}"]
            assert 0 <= x <= BOX_WIDTH
            assert -1e-6 < y - box.get_y() < box.get_height() + 1e-6
        # between its ends it is in the gap between two boxes, or beside all
        if len(path) == 2:
            assert int(ends[1]) == int(ends[0]) + 1
        else:
            assert all(not 0 < x < BOX_WIDTH for x, _ in path)


def test_wires_between_the_same_boxes_do_not_overlap(graphs):
    figure = graph_figure(graphs["gpt"])
    first = names(graphs["gpt"]).index("blocks.0.attn.qkv")
    wires = arrows(figure)
    left = wires[f"{first}>{first + 1} left"]._path_original
    right = wires[f"{first}>{first + 1} right"]._path_original
    assert left.vertices[0][0] < right.vertices[0][0]


def test_layers_go_from_top_to_bottom_after_their_inputs(graphs):
    layers = names(build_graph(mlp(*range(2, 22))))
    assert layers == ["input", *(str(2 * k) for k in range(19))]
    assert names(graphs["gpt"])[:3] == ["wte.tokens", "wpe.tokens", "wte"]
    # of parallel paths, both come before the layer where they end
    assert names(graphs["residual"])[3:7] == ["bn1", "conv2", "down", "bn2"]


def widths(graph, values=None):
    """gid -> thickness of the arrow, in points."""
    wires = arrows(graph_figure(graph, values))
    return {gid: arrow.get_linewidth() for gid, arrow in wires.items()}


def test_thickness_follows_the_norm():
    graph = build_graph(mlp(4, 4, 4))
    values = [torch.zeros(spec.shape) for spec in graph.parameters]
    values[0] += 1.0
    values[2] += 0.5
    assert widths(graph, values).keys() == {"0>1 weight", "1>2 weight"}
    first, second = widths(graph, values).values()
    thin, _ = widths(graph, [torch.zeros_like(v) for v in values]).values()
    assert second - thin == pytest.approx((first - thin) / 2)
    others = widths(graph, [*values[:2], 4 * values[2], values[3]])
    assert (second, first) == (others["0>1 weight"], others["1>2 weight"])


def test_without_values_thickness_follows_the_number_of_elements():
    # 100, 5000 and 200 weights
    thickness = widths(build_graph(mlp(2, 50, 100, 2)))
    first, second, third = (thickness[f"{i}>{i + 1} weight"] for i in range(3))
    least, most = THICKNESS
    assert second == most
    assert (first - least) / (most - least) == pytest.approx(log(101) / log(5001))
    assert (third - least) / (most - least) == pytest.approx(log(201) / log(5001))


def test_edges_of_value_one_are_thin_and_dashed(graphs):
    wires = arrows(graph_figure(graphs["residual"]))
    line = wires["1>3 residual"]
    assert line.get_linewidth() == THIN
    assert line.get_linestyle() not in ("-", "solid")
    assert wires["1>2 weight"].get_linestyle() in ("-", "solid")


def test_boxes_show_size_activation_and_biases(graphs):
    figure = graph_figure(graphs["residual"])
    assert {
        "4 neurons · relu",
        "6 neurons · sigmoid",
        "6 products",
        f"2 {TIMES} one to one · 2 {TIMES} beta",
        f"2 → 4 · 3{TIMES}3 · bias",
        f"4 → 6 · 3{TIMES}3",
    } <= set(words(figure))
    drawn = boxes(figure)
    of_product = drawn[f"group {names(graphs['residual']).index('mul')}"]
    assert of_product.get_facecolor() != drawn["group 0"].get_facecolor()
    assert drawn["group 0"].get_linewidth() > drawn["group 1"].get_linewidth()


def test_the_legend_lists_the_kinds_in_the_drawing(graphs):
    def entries(graph):
        legend = graph_figure(graph).axes[0].get_legend()
        return {text.get_text() for text in legend.get_texts()}

    assert "sum (residual)" not in entries(graphs["lstm"])
    assert "spread" in entries(graphs["lstm"])
    expected = {"sum (residual)", "weights, neuron to neuron", "products", "neurons"}
    assert expected <= entries(graphs["residual"])
    assert {"tokens", "heads"} <= entries(graphs["gpt"])


def test_pieces_of_a_norm_are_one_box():
    model = FromFunction(
        lambda m, x: m.last(m.norm(torch.cat([m.one(x), m.two(x)], dim=1)).relu()),
        one=(3, 4), two=(3, 5), norm=nn.BatchNorm1d(9), last=(9, 2),
    )  # fmt: skip
    graph = build_graph(model, torch.randn(2, 3))
    assert [g.name for g in graph.groups].count("norm") == 2
    assert names(graph).count("norm") == 1
    assert "9 neurons · relu" in words(graph_figure(graph))


@pytest.mark.parametrize(
    "shapes",
    [[(5,)], [(), (3,), (4, 7), (2, 9), (6,), (8,), (10,), (12,)]],
    ids=["one", "unconnected"],
)
def test_graphs_without_edges_are_drawn(shapes, tmp_path):
    graph = build_graph([torch.zeros(shape) for shape in shapes])
    draw(graph, tmp_path / "net.svg", [torch.zeros(shape) for shape in shapes])
    content = (tmp_path / "net.svg").read_text()
    assert len(re.findall('id="group [0-9]+"', content)) == len(graph.groups)


@pytest.mark.parametrize("name", ["gpt", "encoder layer", "residual", "grouped", "cnn"])
def test_words_fit_and_do_not_overlap(graphs, name):
    graph = graphs.get(name) or build_graph(paper_cnn(1, (16, 32, 32)))
    figure = graph_figure(graph)
    FigureCanvasAgg(figure).draw()
    texts = figure.axes[0].texts
    extents = [(text.get_text(), text.get_window_extent()) for text in texts]
    for i, (label, extent) in enumerate(extents):
        for other, other_extent in extents[:i]:
            assert not extent.overlaps(other_extent), (label, other)
    others = figure.axes[0].get_legend(), figure.axes[0]._left_title
    for other in (artist.get_window_extent() for artist in others):
        assert not any(other.overlaps(extent) for _, extent in extents)
        assert other.x1 <= figure.bbox.width
    outlines = [box.get_window_extent() for box in boxes(figure).values()]
    for label, extent in extents:
        for box in outlines:
            if box.contains((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2):
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1, label


def test_deep_networks_are_drawn_in_reasonable_size():
    graph = build_graph(GPT(layers=6), torch.randint(11, (2, 6)))
    width, height = graph_figure(graph).get_size_inches()
    assert width < 10
    assert height < 30


def test_a_png_has_at_most_as_many_pixels_as_matplotlib_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "MAX_PIXELS", 600)
    draw(build_graph(mlp(*range(2, 22))), tmp_path / "net.png")
    with Image.open(tmp_path / "net.png") as image:
        assert 600 <= max(image.size) <= 700
