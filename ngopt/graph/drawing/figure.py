"""A neural graph as a matplotlib figure. matplotlib is optional, so only `draw` imports
this file.

Groups are boxes in a list, in the order of the network. Wires to the next box are
straight, those that skip boxes run left of them, those that lead back right of them.
Lengths are inches, x grows to the right from 0 at the boxes, y upwards to 0. Curves,
title and legend are outside of the axes.
"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import inf, log1p, sqrt
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from torch import Tensor

from ngopt.graph.connectivity import components
from ngopt.graph.groups_and_blocks import is_diagonal
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
}
OTHER_LINE = ("#7a7a7a", (0, (1, 1)))
TIMES = "\N{MULTIPLICATION SIGN}"
BORDER, THICK_BORDER = 0.9, 2.2  # points
THIN = 1.1  # points, edges of value 1
THICKNESS = (0.8, 3.8)  # points, weights from the least to the greatest
BOX_WIDTH, BOX_HEIGHT, STEP = 6.4, 0.27, 0.46  # inches; from a box to the next
NAME, SIZE, DETAILS = 0.1, 2.7, 4.25  # x of the words of a box
STRAIGHT, BULGE = 0.5, 0.35  # x of a straight wire; of one that skips one box
NAME_WIDTH, DETAIL_WIDTH = 32, 40  # characters


class Wire(NamedTuple):
    """An arrow: all blocks of one style from one box to another.

    style: "one to one" for weights with one edge per neuron, or the kind of edges.
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
    height = STEP * len(boxes)
    figure = Figure(figsize=(BOX_WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, BOX_WIDTH), ylim=(-height, 0))
    axes.set_axis_off()
    nodes = sum(group.size for group in graph.groups)
    title = f"neural graph: {nodes:,} nodes, {graph.numel:,} parameter elements"
    axes.set_title(title, fontsize=8, loc="left", color="#303030")
    for number, run in enumerate(boxes):
        _draw_box(axes, graph, number, run)
    beside: Counter[tuple[int, int]] = Counter()  # wires between the same boxes
    thickness = _thickness(graph, wires, values)
    for wire, points in zip(wires, thickness, strict=True):
        _draw_wire(axes, wire, beside[wire[:2]], points)
        beside[wire[:2]] += 1
    by_values = "log of the number of elements", "norm of the values"
    styles = {wire.style for wire in wires}
    _draw_legend(axes, graph, styles, by_values[values is not None])
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


def wires_between(
    graph: NeuralGraph, boxes: Sequence[Sequence[int]]
) -> dict[Wire, list[int]]:
    """The blocks of every wire; boxes: the groups in each."""
    box_of = {group: number for number, run in enumerate(boxes) for group in run}
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
    amounts = [block.view.numel for block in graph.blocks if block.view]
    if values is not None:
        edges = [x.detach().abs().double() for x in graph.gather(values).edges]
        amounts = [float(x.square().sum()) for x in edges]
    weights = [number for number, block in enumerate(graph.blocks) if block.view]
    amount_of = dict(zip(weights, amounts, strict=True))
    strength_of = log1p if values is None else sqrt
    strengths = [
        strength_of(sum(amount_of.get(block, 0) for block in blocks))
        for blocks in wires.values()
    ]
    greatest = max(strengths, default=0) or 1
    least, most = THICKNESS
    return [
        least + (most - least) * strength / greatest if first in amount_of else THIN
        for (first, *_), strength in zip(wires.values(), strengths, strict=True)
    ]


def _draw_wire(axes: Axes, wire: Wire, place: int, points: float) -> None:
    """A straight line to the next box, or a curve from one side of a box to the same
    side of another.

    place: the number of wires between the same boxes before it. points: thickness.
    """
    out, into = -STEP * (wire.source + 0.5), -STEP * (wire.target + 0.5)
    if wire.target == wire.source + 1:
        x = STRAIGHT + 0.3 * place
        path = Path([(x, out - BOX_HEIGHT / 2), (x, into + BOX_HEIGHT / 2)])
    else:
        bulge = BULGE * sqrt(max(abs(wire.target - wire.source), 1))
        # a cubic curve reaches three quarters of the way to its control points
        reach = bulge / 0.75 + 0.1 * place
        side, far = (0, -reach) if into < out else (BOX_WIDTH, BOX_WIDTH + reach)
        out, into = out - BOX_HEIGHT / 5, into + BOX_HEIGHT / 5
        points_of_curve = [(side, out), (far, out), (far, into), (side, into)]
        path = Path(points_of_curve, [Path.MOVETO] + 3 * [Path.CURVE4])
    color, dashes, *_ = LINES.get(wire.style, OTHER_LINE)
    arrow = FancyArrowPatch(
        path=path,
        arrowstyle="-|>,head_length=0.35,head_width=0.18",
        mutation_scale=6 + 1.7 * points,
        color=color,
        linewidth=points,
        linestyle=dashes,
        capstyle="butt",
        joinstyle="miter",
        clip_on=False,
        gid=f"{wire.source}>{wire.target} {wire.style}",
    )
    axes.add_patch(arrow)


def _draw_box(axes: Axes, graph: NeuralGraph, number: int, run: Sequence[int]) -> None:
    """Draws the box of a group, or of the pieces of a norm, with its words: the weights
    into it, their slots, and the biases of its nodes."""
    group, blocks, biases = merged(graph, run)
    fill, border = FILLS.get(group.kind, OTHER_FILL)
    y = -STEP * (number + 0.5)
    is_end = group.role in ("input", "output") or group.is_pinned
    box = FancyBboxPatch(
        (0, y - BOX_HEIGHT / 2),
        BOX_WIDTH,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=fill,
        edgecolor=border,
        linewidth=THICK_BORDER if is_end else BORDER,
        clip_on=False,
        zorder=2,
        gid=f"group {number}",
    )
    axes.add_patch(box)
    size = f"{group.size:,} {group.kind if group.size == 1 else _plural(group.kind)}"
    weights = [block for block in blocks if block.view]
    slots = "/".join(slot_texts([block for block in weights if block.slots > 1]))
    slots += " slots" if slots.isdecimal() else ""
    tags = ", ".join(counted([bias.kind for bias in biases]))
    words = " · ".join(filter(None, (" + ".join(incoming(weights)), slots, tags)))
    words = words.replace("->", "→").replace("x", TIMES)
    details = textwrap.shorten(words, DETAIL_WIDTH, placeholder=" ...")
    size += f" · {group.activation}" if group.activation else ""
    name = shorten(group.name, NAME_WIDTH)
    axes.text(NAME, y, name, va="center", fontsize=7.5, weight="bold")
    axes.text(SIZE, y, size, va="center", fontsize=6.8)
    axes.text(DETAILS, y, details, va="center", fontsize=6.8, color="#404040")


def _plural(kind: str) -> str:
    return "copies" if kind == "copy" else f"{kind}s"


def _draw_legend(
    axes: Axes, graph: NeuralGraph, styles: set[str], thickness: str
) -> None:
    """The kinds and styles in the drawing, and what the thickness of lines means."""
    handles: list[Patch | Line2D] = []
    for kind in dict.fromkeys(group.kind for group in graph.groups):
        fill, border = FILLS.get(kind, OTHER_FILL)
        handles.append(Patch(facecolor=fill, edgecolor=border, label=_plural(kind)))
    entries = [LINES[style] for style in LINES if style in styles]
    if others := sorted(styles - LINES.keys()):
        entries.append((*OTHER_LINE, ", ".join(others)))
    for color, dashes, words in entries:
        handles.append(Line2D([], [], color=color, linestyle=dashes, label=words))
    axes.legend(
        handles=handles,
        title=f"thick boxes: input, output, pinned; thickness of weights: {thickness}",
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=3,
        alignment="left",
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        borderpad=0,
        handlelength=2.6,
    )
