import re
import sys
from itertools import pairwise
from math import log

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from meta_train.problems.networks.convolutional import paper_cnn
from ngopt import build_graph
from ngopt.graph.drawing.draw import draw
from ngopt.graph.drawing.figure import THICKNESS, THIN, TIMES, graph_figure
from ngopt.graph.drawing.grid import BOX_HEIGHT, BOX_WIDTH
from ngopt.graph.drawing.layout import COLUMNS, arrange, condense
from tests.networks import mlp
from tests.zoo import GPT, zoo_graph

NAMES = (
    "gpt",
    "encoder layer",
    "residual",
    "grouped",
    "lstm",
    "projected lstm",
    "gated",
    "triplane",
    "deep sets",
)


@pytest.fixture(scope="module")
def graphs():
    return {name: zoo_graph(name) for name in NAMES}


def arrows(figure):
    """gid -> the arrows of a wire."""
    found = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, FancyArrowPatch):
            found.setdefault(patch.get_gid(), []).append(patch)
    return found


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
    assert (
        "matplotlib.pyplot" not in sys.modules
        or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


@pytest.mark.parametrize("name", ["net.pdf", "net", "net.svg.txt"])
def test_another_suffix_is_an_error(tmp_path, name):
    with pytest.raises(
        ValueError,
        match=rf"expected a file ending in .png or .svg; got '.*{name}'",
    ):
        draw(build_graph(mlp(3, 4, 2)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError,
        match=r"draw needs matplotlib; .*pip install 'ngopt\[graph\]'",
    ):
        draw(build_graph(mlp(3, 4, 2)), tmp_path / "net.png")


@pytest.mark.parametrize("name", NAMES)
def test_svg_names_every_group(graphs, name, tmp_path):
    draw(graphs[name], tmp_path / "net.svg")
    content = (tmp_path / "net.svg").read_text()
    labels = re.findall("<!-- (.*) -->", content)  # of every text that is drawn
    for group in graphs[name].groups:
        assert group.name.rpartition(".")[2] in labels, group.name
    assert len(re.findall('id="group [0-9]+"', content)) == len(graphs[name].groups)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_an_arrow(graphs, name):
    graph = graphs[name]
    layout = arrange(graph)
    assert sorted(block for wire in layout.wires for block in wire.blocks) == list(
        range(len(graph.blocks))
    )
    for wire in layout.wires:
        assert all(
            (graph.blocks[b].source, graph.blocks[b].target) == wire[:2]
            for b in wire.blocks
        )
    assert arrows(graph_figure(graph)).keys() == {
        f"{w.source}>{w.target} {w.style}" for w in layout.wires
    }


@pytest.mark.parametrize("name", NAMES)
def test_boxes_do_not_overlap_and_wires_end_at_them(graphs, name):
    layout = arrange(graphs[name])
    for i, (x, y) in enumerate(layout.centers):
        assert BOX_WIDTH / 2 < x < layout.width - BOX_WIDTH / 2
        assert BOX_HEIGHT / 2 < -y < layout.height - BOX_HEIGHT / 2
        for other_x, other_y in layout.centers[:i]:
            assert abs(x - other_x) > BOX_WIDTH or abs(y - other_y) > BOX_HEIGHT
    for wire, pieces in zip(layout.wires, layout.lines, strict=True):
        (x0, y0), (x1, y1) = (
            layout.centers[wire.source],
            layout.centers[wire.target],
        )
        assert pieces[0][0][0] == x0 + BOX_WIDTH / 2
        assert abs(pieces[0][0][1] - y0) < BOX_HEIGHT / 2
        assert pieces[-1][-1][0] == x1 - BOX_WIDTH / 2
        assert abs(pieces[-1][-1][1] - y1) < BOX_HEIGHT / 2


@pytest.mark.parametrize("name", NAMES)
def test_wires_in_lanes_cross_no_box(graphs, name):
    layout = arrange(graphs[name])
    for pieces in layout.lines:
        for points in pieces:
            if len(points) == 2 and points[0][1] != points[1][1]:
                continue  # a curve between neighbouring columns
            for (x0, y0), (x1, y1) in pairwise(points):
                for x, y in layout.centers:
                    inside_x = (
                        min(x0, x1) < x + BOX_WIDTH / 2 - 1e-6
                        and max(x0, x1) > x - BOX_WIDTH / 2 + 1e-6
                    )
                    inside_y = (
                        min(y0, y1) < y + BOX_HEIGHT / 2
                        and max(y0, y1) > y - BOX_HEIGHT / 2
                    )
                    assert not (inside_x and inside_y)


class Skips(nn.Module):
    """Every layer takes what the input and all layers before have made."""

    def __init__(self, layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3 + 2 * k, 2) for k in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], dim=1)
        return x


@pytest.mark.parametrize("layers", [3, 6, 12])
def test_lines_of_different_sources_do_not_run_into_each_other(layers):
    layout = arrange(build_graph(Skips(layers), torch.randn(2, 3)))
    taken = {}
    for wire, pieces in zip(layout.wires, layout.lines, strict=True):
        for (x0, y0), (x1, y1) in (
            line for points in pieces for line in pairwise(points)
        ):
            if y0 == y1:
                taken.setdefault(y0, []).append((min(x0, x1), max(x0, x1), wire.source))
    assert any(len(lines) > 1 for lines in taken.values())
    for lines in taken.values():
        for k, (start, end, source) in enumerate(lines):
            for other_start, other_end, other in lines[:k]:
                assert source == other or end <= other_start or other_end <= start


def test_of_parallel_paths_the_one_with_a_long_edge_is_above():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second, self.third = (
                nn.Linear(4, 4) for _ in range(4)
            )
            self.short = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.last(
                self.third(self.second(self.first(x).relu()).relu())
                + self.norm(self.short(x))
            )

    graph = build_graph(Shortcut(), torch.randn(2, 4))
    height = {
        group.name: y
        for group, (_, y) in zip(graph.groups, arrange(graph).centers, strict=True)
    }
    assert height["short"] > height["first"]


def test_layers_go_from_left_to_right_and_wrap():
    layout = arrange(build_graph(mlp(*range(2, 22))))
    rows = {}
    for x, y in layout.centers:
        rows.setdefault(y, []).append(x)
    assert [len(row) for row in rows.values()] == [7, 7, 6]
    assert max(map(len, rows.values())) <= COLUMNS
    assert all(row == sorted(row) for row in rows.values())
    assert list(rows) == sorted(rows, reverse=True)
    leaving = [end for end in layout.continuations if end.leaves]
    assert [layout.wires[end.wires[0]].target for end in leaving] == [7, 14]
    assert len(layout.continuations) == 2 * len(leaving)


def test_thickness_follows_the_norm():
    model = mlp(4, 4, 4)
    graph = build_graph(model)
    values = [torch.zeros(spec.shape) for spec in graph.parameters]
    values[0] += 1.0
    values[2] += 0.5
    widths = {
        gid: lines[0].get_linewidth()
        for gid, lines in arrows(graph_figure(graph, values)).items()
    }
    assert widths.keys() == {"0>1 weight", "1>2 weight"}
    least = graph_figure(graph, [torch.zeros_like(v) for v in values])
    thin = arrows(least)["0>1 weight"][0].get_linewidth()
    assert widths["1>2 weight"] - thin == pytest.approx(
        (widths["0>1 weight"] - thin) / 2
    )
    doubled = arrows(graph_figure(graph, [*values[:2], 4 * values[2], values[3]]))
    assert doubled["1>2 weight"][0].get_linewidth() == widths["0>1 weight"]
    assert doubled["0>1 weight"][0].get_linewidth() == widths["1>2 weight"]


def test_without_values_thickness_follows_the_number_of_elements():
    # 100, 5000 and 200 weights
    found = arrows(graph_figure(build_graph(mlp(2, 50, 100, 2))))
    first, second, third = (
        found[f"{i}>{i + 1} weight"][0].get_linewidth() for i in range(3)
    )
    least, most = THICKNESS
    assert second == most
    assert (first - least) / (most - least) == pytest.approx(log(101) / log(5001))
    assert (third - least) / (most - least) == pytest.approx(log(201) / log(5001))


def test_edges_of_value_one_are_thin_and_dashed(graphs):
    found = arrows(graph_figure(graphs["residual"]))
    (line,) = found["1>3 residual"]
    assert line.get_linewidth() == THIN
    assert line.get_linestyle() not in ("-", "solid")
    assert found["1>2 weight"][0].get_linestyle() in ("-", "solid")


def test_boxes_tell_size_activation_and_biases(graphs):
    figure = graph_figure(graphs["residual"])
    found = words(figure)
    assert {
        "4 neurons · relu",
        "6 neurons · sigmoid",
        "6 products",
        f"2 {TIMES} beta",
        "bias",
    } <= set(found)
    assert f"4 → 6 · 3{TIMES}3" in found
    boxes = {
        p.get_gid(): p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)
    }
    colours = {
        graphs["residual"].groups[int(gid.split()[1])].kind: p.get_facecolor()
        for gid, p in boxes.items()
    }
    assert colours["neuron"] != colours["product"]
    assert boxes["group 0"].get_linewidth() > boxes["group 1"].get_linewidth()


def test_the_legend_explains_what_occurs(graphs):
    def entries(graph):
        return {
            text.get_text()
            for text in graph_figure(graph).axes[0].get_legend().get_texts()
        }

    assert "sum (residual)" not in entries(graphs["lstm"])
    assert {
        "sum (residual)",
        "weights, neuron to neuron",
        "products",
        "neurons",
    } <= entries(graphs["residual"])
    assert {"tokens", "heads"} <= entries(graphs["gpt"])


def test_pieces_of_a_norm_are_one_box():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 4)
            self.two = nn.Linear(3, 5)
            self.norm = nn.BatchNorm1d(9)
            self.last = nn.Linear(9, 2)

        def forward(self, x):
            return self.last(
                self.norm(torch.cat([self.one(x), self.two(x)], dim=1)).relu()
            )

    graph = build_graph(Concatenated(), torch.randn(2, 3))
    drawn = condense(graph)
    assert [g.name for g in graph.groups].count("norm") == 2
    assert [(g.name, g.size) for g in drawn.groups if g.name == "norm"] == [("norm", 9)]
    assert "9 neurons · relu" in words(graph_figure(graph))
    assert len(drawn.blocks) == len(graph.blocks)


@pytest.mark.parametrize(
    "shapes",
    [[(5,)], [(), (3,), (4, 7), (2, 9), (6,), (8,), (10,), (12,)]],
    ids=["one", "unconnected"],
)
def test_graphs_without_edges_are_drawn(shapes, tmp_path):
    graph = build_graph([torch.zeros(shape) for shape in shapes])
    draw(graph, tmp_path / "net.svg", [torch.zeros(shape) for shape in shapes])
    assert len(
        re.findall('id="group [0-9]+"', (tmp_path / "net.svg").read_text())
    ) == len(graph.groups)


@pytest.mark.parametrize("name", ["gpt", "encoder layer", "residual", "grouped", "cnn"])
def test_words_fit_and_do_not_overlap(graphs, name):
    figure = graph_figure(
        graphs[name] if name in graphs else build_graph(paper_cnn(1, (16, 32, 32)))
    )
    FigureCanvasAgg(figure).draw()
    extents = [
        (text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts
    ]
    for i, (label, extent) in enumerate(extents):
        assert (
            extent.x0 >= 0
            and extent.x1 <= figure.bbox.width
            and extent.y0 >= 0
            and extent.y1 <= figure.bbox.height
        )
        for other, other_extent in extents[:i]:
            assert not extent.overlaps(other_extent), (label, other)
    legend = figure.axes[0].get_legend().get_window_extent()
    assert not any(legend.overlaps(extent) for _, extent in extents)
    assert legend.x1 <= figure.bbox.width
    boxes = [
        patch.get_window_extent()
        for patch in figure.axes[0].patches
        if isinstance(patch, FancyBboxPatch)
    ]
    for label, extent in extents:
        for box in boxes:
            if box.contains((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2):
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1, label


def test_deep_networks_are_drawn_in_reasonable_size():
    graph = build_graph(GPT(layers=6), torch.randint(11, (2, 6)))
    figure = graph_figure(graph)
    width, height = figure.get_size_inches()
    assert width < 20
    assert height < 20
