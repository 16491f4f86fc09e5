"""A neural graph as a matplotlib figure. matplotlib is optional, so only `draw` imports
this file.

Groups are boxes in a list, in the order of the network. Wires to the next box are
straight, those that skip boxes run left of them, those that lead back right of them.
Lengths are inches, x grows to the right from 0 at the boxes, y upwards to 0.
"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import ceil, inf, log1p, sqrt
from typing import NamedTuple

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from torch import Tensor

from ngopt.graph.connectivity import components
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, NeuronGroup, is_diagonal
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.summary import counted, incoming, merged, runs, shorten, slot_texts

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
BORDER, THICK_BORDER = 0.9, 2.2  # points
THIN = 1.1  # points, edges of value 1
THICKNESS = (0.8, 3.8)  # points, weights from the least to the greatest
BOX_WIDTH, BOX_HEIGHT, STEP = 6.4, 0.27, 0.46  # inches; from a box to the next
NAME, SIZE, DETAILS = 0.1, 2.7, 4.25  # x of the words of a box
STRAIGHT = 0.5  # x of the first wire from a box to the next
NAME_WIDTH, DETAIL_WIDTH = 32, 40  # characters
BULGE, MARGIN = 0.35, 0.25  # of a wire that skips one box; around all
LEGEND_COLUMN, LEGEND_ROW, HEADER = 2.1, 0.2, 0.3


class Wire(NamedTuple):
    """An arrow: all blocks of one style from one box to another.

    style: "weight", "one to one" for weights with one edge per neuron, or the kind of
        edges of value 1.
    """

    source: int
    target: int
    style: str


def graph_figure(graph: NeuralGraph, values: Sequence[Tensor] | None = None) -> Figure:
    """The drawing that `ngopt.graph.draw` saves.

    Every box has the gid "group n", every wire the gid "source>target style".
    """
    boxes = boxes_of(graph)
    wires = wires_between(graph, boxes)
    legend = _legend(graph, wires, values is not None)
    forward = [_bulge(wire) for wire in wires if wire.target > wire.source]
    back = [_bulge(wire) for wire in wires if wire.target <= wire.source]
    left, right = MARGIN + max(forward, default=0), MARGIN + max(back, default=0)
    width = left + BOX_WIDTH + right
    legend_columns = int(width / LEGEND_COLUMN)
    legend_height = LEGEND_ROW * ceil(len(legend) / legend_columns) + 0.2
    height = STEP * len(boxes) + legend_height
    figure = Figure(figsize=(width, HEADER + height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-left, BOX_WIDTH + right), ylim=(-height, HEADER))
    axes.set_axis_off()
    nodes = sum(group.size for group in graph.groups)
    groups = f"{len(graph.groups)} group" + ("s" if len(graph.groups) != 1 else "")
    elements = f"{graph.numel:,} parameter elements"
    title = f"neural graph: {nodes:,} nodes in {groups}, {elements}"
    axes.text(0, HEADER - 0.12, title, fontsize=8, va="top", color="#303030")
    for number, run in enumerate(boxes):
        _draw_box(axes, graph, number, run)
    _draw_wires(axes, wires, _thickness(graph, wires, values))
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


def boxes_of(graph: NeuralGraph) -> list[list[int]]:
    """The groups in each box: component after component, by depth; inputs directly
    before the first group that they lead to.

    The pieces of a norm over concatenated groups are one box.
    """
    component = components(graph)
    first = [inf] * len(graph.groups)  # depth of the targets of each group
    for block in graph.blocks:
        depth = graph.groups[block.target].depth
        first[block.source] = min(first[block.source], depth)

    def key(run: Sequence[int]) -> tuple:
        group = max(run, key=lambda number: graph.groups[number].depth)
        depth = graph.groups[group].depth
        place = (depth, 1) if depth else (first[group], 0)
        return component[group], *place

    return sorted(runs(graph), key=key)


# Wires


def wires_between(
    graph: NeuralGraph, boxes: Sequence[Sequence[int]]
) -> dict[Wire, list[int]]:
    """The blocks of every wire; boxes: the groups in each."""
    box_of = {}
    for number, run in enumerate(boxes):
        box_of |= dict.fromkeys(run, number)
    wires: dict[Wire, list[int]] = defaultdict(list)
    for number, block in enumerate(graph.blocks):
        style = "one to one" if block.view and is_diagonal(block) else block.kind
        wires[Wire(box_of[block.source], box_of[block.target], style)].append(number)
    return wires


def _thickness(
    graph: NeuralGraph, wires: dict[Wire, list[int]], values: Sequence[Tensor] | None
) -> list[float]:
    """Thickness of every wire in points: by the norm of its values, without values by
    the log of its number of elements."""
    edges = None if values is None else iter(graph.gather(values).edges)
    amounts = []  # numbers of elements, or squared norms; 0 for edges of value 1
    for block in graph.blocks:
        if block.view is None or edges is None:
            amounts.append(block.view.numel if block.view else 0)
        else:
            absolute = next(edges).detach().abs().double()
            amounts.append(float(torch.linalg.vector_norm(absolute)) ** 2)
    strength_of = log1p if values is None else sqrt
    strengths = [
        strength_of(sum(amounts[block] for block in blocks))
        for blocks in wires.values()
    ]
    greatest = max(strengths, default=0) or 1
    least, most = THICKNESS
    return [
        least + (most - least) * strength / greatest
        if graph.blocks[first].view
        else THIN
        for (first, *_), strength in zip(wires.values(), strengths, strict=True)
    ]


def _bulge(wire: Wire) -> float:
    """How far a wire is from the boxes: 0 if it is straight."""
    if wire.target == wire.source + 1:
        return 0.0
    return BULGE * sqrt(max(abs(wire.target - wire.source), 1))


def _draw_wires(axes: Axes, wires: Iterable[Wire], thickness: Sequence[float]) -> None:
    beside: Counter[tuple[int, int]] = Counter()  # wires between the same boxes
    for wire, points in zip(wires, thickness, strict=True):
        color, dashes, _ = LINES.get(wire.style, OTHER_LINE)
        arrow = FancyArrowPatch(
            path=_path(wire, beside[wire[:2]]),
            arrowstyle="-|>,head_length=0.35,head_width=0.18",
            mutation_scale=6 + 1.7 * points,
            shrinkA=0,
            shrinkB=0,
            color=color,
            linewidth=points,
            linestyle=dashes,
            capstyle="butt",
            joinstyle="miter",
            zorder=1,
            gid=f"{wire.source}>{wire.target} {wire.style}",
        )
        axes.add_patch(arrow)
        beside[wire[:2]] += 1


def _path(wire: Wire, place: int) -> Path:
    """A straight line to the next box, or a curve from one side of a box to the same
    side of another; place: the number of wires between the same boxes before it."""
    out, into = -STEP * (wire.source + 0.5), -STEP * (wire.target + 0.5)
    if not _bulge(wire):
        x = STRAIGHT + 0.3 * place
        return Path([(x, out - BOX_HEIGHT / 2), (x, into + BOX_HEIGHT / 2)])
    # a cubic curve reaches three quarters of the way to its control points
    reach = _bulge(wire) / 0.75 + 0.1 * place
    side, far = (0, -reach) if into < out else (BOX_WIDTH, BOX_WIDTH + reach)
    out -= BOX_HEIGHT / 5
    into += BOX_HEIGHT / 5
    points = [(side, out), (far, out), (far, into), (side, into)]
    return Path(points, [Path.MOVETO] + 3 * [Path.CURVE4])


# Boxes


def _draw_box(axes: Axes, graph: NeuralGraph, number: int, run: Sequence[int]) -> None:
    """Draws the box of a group, or of the pieces of a norm, with its words."""
    group, blocks, biases = merged(graph, run)
    fill, border = FILLS.get(group.kind, OTHER_FILL)
    y = -STEP * (number + 0.5)
    box = FancyBboxPatch(
        (0, y - BOX_HEIGHT / 2),
        BOX_WIDTH,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=fill,
        edgecolor=border,
        linewidth=THICK_BORDER if _has_thick_border(group) else BORDER,
        zorder=2,
        gid=f"group {number}",
    )
    axes.add_patch(box)
    size = f"{group.size:,} {group.kind if group.size == 1 else _plural(group.kind)}"
    if group.activation:
        size += f" · {group.activation}"
    name, details = shorten(group.name, NAME_WIDTH), _details(blocks, biases)
    axes.text(NAME, y, name, va="center", fontsize=7.5, weight="bold")
    axes.text(SIZE, y, size, va="center", fontsize=6.8)
    axes.text(DETAILS, y, details, va="center", fontsize=6.8, color="#404040")


def _details(blocks: Sequence[EdgeBlock], biases: Sequence[Bias]) -> str:
    """The weights into a box, their slots, and the biases of its nodes."""
    weights = [block for block in blocks if block.view]
    slots = "/".join(slot_texts([block for block in weights if block.slots > 1]))
    if slots.isdecimal():
        slots += " slots"
    sizes = " + ".join(incoming(weights))
    tags = ", ".join(counted([bias.kind for bias in biases]))
    words = " · ".join(filter(None, (sizes, slots, tags)))
    words = words.replace("->", "→").replace("x", TIMES)
    return textwrap.shorten(words, DETAIL_WIDTH, placeholder=" ...")


def _has_thick_border(group: NeuronGroup) -> bool:
    return group.role in ("input", "output") or group.is_pinned


def _plural(kind: str) -> str:
    return "copies" if kind == "copy" else f"{kind}s"


# Legend


def _legend(
    graph: NeuralGraph, wires: Iterable[Wire], with_values: bool
) -> list[Artist]:
    """Handles for the kinds and styles in the drawing."""
    handles: list[Artist] = []
    for kind in dict.fromkeys(group.kind for group in graph.groups):
        fill, border = FILLS.get(kind, OTHER_FILL)
        handles.append(Patch(facecolor=fill, edgecolor=border, label=_plural(kind)))
    if any(map(_has_thick_border, graph.groups)):
        look = {"facecolor": "white", "edgecolor": "#404040", "lw": THICK_BORDER}
        handles.append(Patch(label="input, output or pinned", **look))
    styles = {wire.style for wire in wires}
    known = [style for style in LINES if style in styles]
    for style in (*known, *sorted(styles - LINES.keys())):
        color, dashes, words = LINES.get(style, OTHER_LINE)
        look = {"color": color, "linestyle": dashes, "linewidth": 1.6}
        handles.append(Line2D([], [], label=words or style, **look))
    if graph.weights:
        by_values, by_size = "norm of the values", "log of the number of elements"
        label = f"thickness: {by_values if with_values else by_size}"
        handles.append(Line2D([], [], color="#33475b", linewidth=4, label=label))
    return handles
