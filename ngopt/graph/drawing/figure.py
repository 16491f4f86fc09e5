"""A neural graph as a matplotlib figure. matplotlib is optional, so only `draw` imports
this file."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, hypot, log1p, sqrt

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from torch import Tensor

from ngopt.graph.drawing.grid import BOX_HEIGHT, BOX_WIDTH, Point, Wire
from ngopt.graph.drawing.layout import Continuation, DrawingLayout, arrange, condense
from ngopt.graph.groups_and_blocks import NeuronGroup
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.summary import counted, incoming, shorten, slot_text

FILLS = {  # kind of group -> colours of box and border
    "neuron": ("#dde9f6", "#4a78a6"),
    "token": ("#e4f2d8", "#6b9a3c"),
    "product": ("#fbe7d2", "#c97f2d"),
    "head": ("#f2deef", "#9c5594"),
    "pool": ("#eceef4", "#6d7891"),
    "group": ("#e3f1f0", "#4d8f8a"),
    "position": ("#fdf4cd", "#b39b1e"),
    "parameter": ("#fadcd8", "#b64c3c"),
    "constant": ("#ebebeb", "#808080"),
    "copy": ("#f4f8fc", "#8fb0cf"),
}
PLURALS = {"copy": "copies", "bias": "biases"}
OTHER_FILL = ("#ffffff", "#404040")
LINES = {  # style of a wire -> colour, dashes, words of the legend
    "weight": ("#33475b", "-", "weights"),
    "flatten": ("#5d6fd0", "-", "weights of a flattened map"),
    "one to one": ("#1f8f86", "-", "weights, neuron to neuron"),
    "recurrent": ("#a23b72", "-", "recurrent weights"),
    "residual": ("#3f9142", (0, (4, 1.5)), "sum (residual)"),
    "left": ("#d1762b", (0, (2, 1)), "left side of a product or sum"),
    "right": ("#8b5fb0", (0, (2, 1)), "right side of a product or sum"),
    "pool": ("#7a7a7a", (0, (1, 1)), "pool: many nodes into one"),
    "spread": ("#7a7a7a", (0, (5, 1, 1, 1)), "spread: one node to many"),
    "copy": ("#8fb0cf", (0, (1, 1)), "copy: the same, seen otherwise"),
}
OTHER_LINE = ("#404040", (0, (1, 1)), "")
TIMES = "\N{MULTIPLICATION SIGN}"
THIN_BORDER, BORDER, THICK_BORDER = 0.7, 0.9, 2.2  # points
THIN = 1.1  # points, edges of value 1
THICKNESS = (0.8, 3.8)  # points, weights from the least to the greatest
CORNER = 0.08  # inches
# Characters that fit into a box, and beside a row.
NAME_WIDTH, PATH_WIDTH, DETAIL_WIDTH = 19, 27, 25
CONTINUATION_WIDTH = 18
LEGEND_COLUMN, LEGEND_ROW, HEADER, LEAST_WIDTH = 2.1, 0.2, 0.3, 4.6  # inches
CENTERED = {"ha": "center", "va": "center"}


def graph_figure(graph: NeuralGraph, values: Sequence[Tensor] | None = None) -> Figure:
    """The drawing that `ngopt.graph.draw` saves.

    Every wire is an artist with the gid "source>target style".
    """
    nodes = sum(group.size for group in graph.groups)
    groups = len(graph.groups)
    plural = "s" if groups != 1 else ""
    elements = f"{graph.numel:,} parameter elements"
    title = f"neural graph: {nodes:,} nodes in {groups} group{plural}, {elements}"
    graph = condense(graph)
    layout = arrange(graph)
    legend = _legend(graph, layout.wires, values is not None)
    width = max(layout.width, LEAST_WIDTH)
    legend_columns = int(width / LEGEND_COLUMN)
    legend_height = LEGEND_ROW * ceil(len(legend) / legend_columns) + 0.2
    figure = Figure(figsize=(width, layout.height + HEADER + legend_height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(-layout.height - legend_height, HEADER))
    axes.set_axis_off()
    axes.text(0.2, HEADER - 0.12, title, fontsize=8, va="top", color="#303030")
    thickness = _thickness(graph, layout.wires, values)
    _draw_wires(axes, layout, thickness)
    for continuation in layout.continuations:
        _draw_continuation(axes, graph, layout.wires, continuation)
    for number, center in enumerate(layout.centers):
        _draw_group(axes, graph, number, center)
    axes.legend(
        handles=legend,
        loc="lower left",
        ncols=legend_columns,
        fontsize=7,
        frameon=False,
        borderaxespad=1.2,
        handlelength=2.6,
    )
    return figure


# Wires


def _thickness(
    graph: NeuralGraph, wires: Sequence[Wire], values: Sequence[Tensor] | None
) -> list[float]:
    """Thickness of every wire in points: by the norm of its values, without values by
    the log of its number of elements."""
    if values is None:
        amounts = [block.view.numel if block.view else 0 for block in graph.blocks]
        strength_of = log1p
    else:
        amounts = _squared_norms(graph, values)
        strength_of = sqrt
    strengths = []
    for wire in wires:
        strengths.append(strength_of(sum(amounts[block] for block in wire.blocks)))
    greatest = max(strengths, default=0) or 1
    least, most = THICKNESS
    thickness = []
    for wire, strength in zip(wires, strengths, strict=True):
        if graph.blocks[wire.blocks[0]].view is None:
            thickness.append(THIN)
        else:
            thickness.append(least + (most - least) * strength / greatest)
    return thickness


def _squared_norms(graph: NeuralGraph, values: Sequence[Tensor]) -> list[float]:
    """The squared norm of the values of every block, 0 for edges of value 1."""
    edges = iter(graph.gather(values).edges)
    squares = []
    for block in graph.blocks:
        if block.view is None:
            squares.append(0.0)
        else:
            absolute = next(edges).detach().abs().double()
            norm = float(torch.linalg.vector_norm(absolute))
            squares.append(norm**2)
    return squares


def _draw_wires(axes: Axes, layout: DrawingLayout, thickness: Sequence[float]) -> None:
    """Draws every wire; wires that share a line show the thickest."""
    drawn = set()
    for number in sorted(range(len(thickness)), key=lambda i: -thickness[i]):
        wire = layout.wires[number]
        for line in layout.lines[number]:
            key = (wire.style, *line)
            if key not in drawn:
                drawn.add(key)
                _draw_line(axes, wire, line, thickness[number])


def _draw_line(axes: Axes, wire: Wire, line: Sequence[Point], thickness: float) -> None:
    color, dashes, _ = LINES.get(wire.style, OTHER_LINE)
    arrow = FancyArrowPatch(
        path=_path(line),
        arrowstyle="-|>,head_length=0.35,head_width=0.18",
        mutation_scale=9 + 2 * thickness,
        shrinkA=0,
        shrinkB=0,
        color=color,
        linewidth=thickness,
        linestyle=dashes,
        capstyle="butt",
        joinstyle="miter",
        zorder=1,
        gid=f"{wire.source}>{wire.target} {wire.style}",
    )
    axes.add_patch(arrow)


def _path(points: Sequence[Point]) -> Path:
    """A line with rounded corners; between two points of different height a curve."""
    if len(points) == 2:
        (x0, y0), (x1, y1) = points
        middle = (x0 + x1) / 2
        vertices = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
        return Path(vertices, [Path.MOVETO] + 3 * [Path.CURVE4])
    vertices = [points[0]]
    codes = [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _towards(corner: Point, end: Point) -> Point:
    """The point on the line from a corner to `end` where the rounding stops."""
    across = end[0] - corner[0]
    up = end[1] - corner[1]
    length = hypot(across, up)
    share = min(CORNER, length / 2) / length if length else 0.0
    return corner[0] + share * across, corner[1] + share * up


def _draw_continuation(
    axes: Axes, graph: NeuralGraph, wires: Sequence[Wire], continuation: Continuation
) -> None:
    """Names the group to which wires lead, or from which one comes."""
    wire = wires[continuation.wires[0]]
    group = graph.groups[wire.target if continuation.leaves else wire.source]
    preposition = "to" if continuation.leaves else "from"
    words = f"{preposition} {shorten(group.name, CONTINUATION_WIDTH)}"
    if continuation.leaves and len(continuation.wires) > 1:
        words += f" + {len(continuation.wires) - 1}"
    x, y = continuation.place
    space, align = (0.04, "left") if continuation.at_right else (-0.04, "right")
    color, _, _ = LINES.get(wire.style, OTHER_LINE)
    axes.text(x + space, y, words, ha=align, va="center", fontsize=5.5, color=color)


# Groups


def _draw_group(axes: Axes, graph: NeuralGraph, number: int, center: Point) -> None:
    """Draws the box of a group with its words, and its biases on the lower border."""
    group = graph.groups[number]
    fill, border = FILLS.get(group.kind, OTHER_FILL)
    x, y = center
    bottom = y - BOX_HEIGHT / 2
    left = x - BOX_WIDTH / 2
    box = FancyBboxPatch(
        (left, bottom),
        BOX_WIDTH,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.09",
        facecolor=fill,
        edgecolor=border,
        linewidth=THICK_BORDER if _has_thick_border(group) else BORDER,
        zorder=2,
        gid=f"group {number}",
    )
    axes.add_patch(box)
    _draw_words(axes, graph, number, center)
    kinds = counted([bias.kind for bias in graph.biases_of(number)])
    if kinds:
        tag = {
            "boxstyle": "round,pad=0.25",
            "facecolor": "white",
            "edgecolor": border,
            "linewidth": THIN_BORDER,
        }
        words = ", ".join(kinds).replace(" x ", f" {TIMES} ")
        style = {"fontsize": 5.8, "color": "#303030", **CENTERED}
        axes.text(x, bottom, words, bbox=tag, zorder=4, **style)


def _has_thick_border(group: NeuronGroup) -> bool:
    return group.role in ("input", "output") or group.is_pinned


def _draw_words(axes: Axes, graph: NeuralGraph, number: int, center: Point) -> None:
    """Writes name, size, activation and weights of a group into its box."""
    group = graph.groups[number]
    path, _, name = group.name.rpartition(".")
    what = group.kind if group.size == 1 else _plural(group.kind)
    what = f"{group.size:,} {what}"
    if group.activation:
        what += f" · {group.activation}"
    lines = [
        (shorten(path, PATH_WIDTH), 6, "normal", "#606060"),
        (shorten(name, NAME_WIDTH), 8.5, "bold", "#101010"),
        (what, 6.8, "normal", "#101010"),
        (_incoming(graph, number), 6.8, "normal", "#404040"),
    ]
    lines = [line for line in lines if line[0]]
    heights = [size * 1.45 / 72 for _, size, _, _ in lines]
    x, y = center
    y += sum(heights) / 2
    for line, height in zip(lines, heights, strict=True):
        words, size, weight, color = line
        style = {"fontsize": size, "weight": weight, "color": color, **CENTERED}
        axes.text(x, y - height / 2, words, zorder=3, **style)
        y -= height


def _incoming(graph: NeuralGraph, group: int) -> str:
    """The weights into a group and their slots, in words that fit into a box."""
    blocks = [block for block in graph.blocks_into(group) if block.view]
    shapes: dict[str, None] = {}
    for block in blocks:
        if block.slots > 1:
            unit = " slots" if len(block.slot_shape) == 1 else ""
            shapes[f"{slot_text(block)}{unit}"] = None
    slots = "/".join(shapes)
    words = " + ".join(incoming(blocks))
    if len(words) + len(slots) > DETAIL_WIDTH:
        words = f"{len(blocks)} blocks"
    if slots and len(words) + len(slots) <= DETAIL_WIDTH:
        words += f" · {slots}"
    return words.replace("->", "→").replace("x", TIMES)


def _plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


# Legend


def _legend(
    graph: NeuralGraph, wires: Sequence[Wire], with_values: bool
) -> list[Artist]:
    """Handles for the kinds and styles in the drawing."""
    handles: list[Artist] = []
    for kind in dict.fromkeys(group.kind for group in graph.groups):
        fill, border = FILLS.get(kind, OTHER_FILL)
        handles.append(Patch(facecolor=fill, edgecolor=border, label=_plural(kind)))
    if any(map(_has_thick_border, graph.groups)):
        handles.append(_empty_box(THICK_BORDER, "input, output or pinned"))
    if graph.biases:
        handles.append(_empty_box(THIN_BORDER, "tag: biases of the nodes"))
    styles = {wire.style for wire in wires}
    known = [style for style in LINES if style in styles]
    for style in (*known, *sorted(styles - LINES.keys())):
        color, dashes, words = LINES.get(style, OTHER_LINE)
        look = {"color": color, "linestyle": dashes, "linewidth": 1.6}
        handles.append(Line2D([], [], label=words or style, **look))
    if graph.weights:
        of_values = "norm of the values"
        measure = of_values if with_values else "log of the number of elements"
        label = f"thickness: {measure}"
        handles.append(Line2D([], [], color="#33475b", linewidth=4, label=label))
    return handles


def _empty_box(border: float, label: str) -> Patch:
    return Patch(facecolor="white", edgecolor="#404040", linewidth=border, label=label)
