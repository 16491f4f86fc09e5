"""A neural graph as a matplotlib figure. Needs matplotlib;
nothing imports this file before it is used."""

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
from ngopt.graph.drawing.layout import Note, arrange, condense
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.summary import counted, incoming, shorten, slot_text

FILLS = {  # kind of group -> colour inside and of the border
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
ENDS = ("input", "output")  # roles with a thick border
THIN = 1.1  # points, edges of value 1
THICKNESS = (0.8, 3.8)  # points, weights from the least to the greatest
CORNER = 0.08  # inches
NAME_WIDTH, PATH_WIDTH, DETAIL_WIDTH = (
    19,
    27,
    25,
)  # characters that fit into a box
NOTE_CHARACTERS = 18
LEGEND_COLUMN, LEGEND_ROW, HEADER, LEAST_WIDTH = 2.1, 0.2, 0.3, 4.6  # inches


def graph_figure(graph: NeuralGraph, values: Sequence[Tensor] | None = None) -> Figure:
    """The drawing that `ngopt.graph.drawing.draw` saves.
    Every wire is an artist whose gid is "source>target style"."""
    title = _title(graph)
    graph = condense(graph)
    layout = arrange(graph)
    key = _legend(graph, layout.wires, values is not None)
    width = max(layout.width, LEAST_WIDTH)
    per_row = int(width / LEGEND_COLUMN)
    legend_height = LEGEND_ROW * ceil(len(key) / per_row) + 0.2
    height = layout.height + HEADER + legend_height
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(-layout.height - legend_height, HEADER))
    axes.set_axis_off()
    axes.text(0.2, HEADER - 0.12, title, fontsize=8, va="top", color="#303030")
    drawn: set[tuple] = set()
    widths = _widths(graph, layout.wires, values)
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        for points in layout.pieces[i]:
            part = (layout.wires[i].style, *points)
            # in a lane some wires are one line; the thickest shows
            if part not in drawn:
                drawn.add(part)
                _draw_line(axes, layout.wires[i], points, widths[i])
    for note in layout.notes:
        _draw_note(axes, graph, layout.wires, note)
    for i, center in enumerate(layout.centers):
        _draw_group(axes, graph, i, center)
    axes.legend(
        handles=key,
        loc="lower left",
        ncols=per_row,
        fontsize=7,
        frameon=False,
        borderaxespad=1.2,
        handlelength=2.6,
    )
    return figure


def _title(graph: NeuralGraph) -> str:
    nodes = sum(group.size for group in graph.groups)
    groups = len(graph.groups)
    plural = "s" if groups != 1 else ""
    elements = f"{graph.numel:,} parameter elements"
    return f"neural graph: {nodes:,} nodes in {groups} group{plural}, {elements}"


def _widths(
    graph: NeuralGraph, wires: Sequence[Wire], values: Sequence[Tensor] | None
) -> list[float]:
    """Thickness of every wire in points: by the norm of its values,
    without them by the log of its elements."""
    if values is None:
        strength = [
            log1p(sum(view.numel for b in w.blocks if (view := graph.blocks[b].view)))
            for w in wires
        ]
    else:
        norms = {}
        edges = iter(graph.gather(values).edges)
        for i, block in enumerate(graph.blocks):
            norms[i] = (
                float(torch.linalg.vector_norm(next(edges).detach().abs().double()))
                if block.view
                else 0.0
            )
        strength = [sqrt(sum(norms[b] ** 2 for b in wire.blocks)) for wire in wires]
    greatest = max(strength, default=0) or 1
    least, most = THICKNESS
    return [
        least + (most - least) * s / greatest
        if graph.blocks[w.blocks[0]].view
        else THIN
        for s, w in zip(strength, wires, strict=True)
    ]


def _draw_line(
    axes: Axes, wire: Wire, points: Sequence[Point], linewidth: float
) -> None:
    color, dashes, _ = LINES.get(wire.style, OTHER_LINE)
    axes.add_patch(
        FancyArrowPatch(
            path=_path(points),
            arrowstyle="-|>,head_length=0.35,head_width=0.18",
            mutation_scale=9 + 2 * linewidth,
            shrinkA=0,
            shrinkB=0,
            color=color,
            linewidth=linewidth,
            linestyle=dashes,
            capstyle="butt",
            joinstyle="miter",
            zorder=1,
            gid=f"{wire.source}>{wire.target} {wire.style}",
        )
    )


def _path(points: Sequence[Point]) -> Path:
    """A line with rounded corners; between two points of different height a curve."""
    if len(points) == 2:
        (x0, y0), (x1, y1) = points
        middle = (x0 + x1) / 2
        return Path(
            [(x0, y0), (middle, y0), (middle, y1), (x1, y1)],
            [Path.MOVETO] + 3 * [Path.CURVE4],
        )
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _towards(start: Point, end: Point) -> Point:
    """The point behind a corner where its rounding ends."""
    across = end[0] - start[0]
    up = end[1] - start[1]
    length = hypot(across, up)
    share = min(CORNER, length / 2) / length if length else 0.0
    return start[0] + share * across, start[1] + share * up


def _draw_note(
    axes: Axes, graph: NeuralGraph, wires: Sequence[Wire], note: Note
) -> None:
    """Says at a margin where wires go on, or one comes from."""
    wire = wires[note.wires[0]]
    words = f"{'to' if note.leaves else 'from'} "
    words += shorten(
        graph.groups[wire.target if note.leaves else wire.source].name,
        NOTE_CHARACTERS,
    )
    if note.leaves and len(note.wires) > 1:
        words += f" + {len(note.wires) - 1}"
    x, y = note.place
    side, align = (0.04, "left") if note.right else (-0.04, "right")
    axes.text(
        x + side,
        y,
        words,
        ha=align,
        va="center",
        fontsize=5.5,
        color=LINES.get(wire.style, OTHER_LINE)[0],
    )


def _draw_group(axes: Axes, graph: NeuralGraph, number: int, center: Point) -> None:
    group = graph.groups[number]
    (x, y), (fill, border) = center, FILLS.get(group.kind, OTHER_FILL)
    corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(
            corner,
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.09",
            facecolor=fill,
            edgecolor=border,
            linewidth=2.2 if group.role in ENDS or group.is_pinned else 0.9,
            zorder=2,
            gid=f"group {number}",
        )
    )
    path, _, name = group.name.rpartition(".")
    what = f"{group.size:,} {_plural(group.kind) if group.size != 1 else group.kind}"
    lines = [
        (shorten(path, PATH_WIDTH), 6, "normal", "#606060"),
        (shorten(name, NAME_WIDTH), 8.5, "bold", "#101010"),
        (
            f"{what} · {group.activation}" if group.activation else what,
            6.8,
            "normal",
            "#101010",
        ),
        (_incoming(graph, number), 6.8, "normal", "#404040"),
    ]
    _draw_words(axes, center, [line for line in lines if line[0]])
    tags = counted([bias.kind for bias in graph.biases if bias.group == number])
    if tags:
        _draw_tag(
            axes,
            ", ".join(tags).replace(" x ", f" {TIMES} "),
            (x, y - BOX_HEIGHT / 2),
            border,
        )


def _draw_words(
    axes: Axes, center: Point, lines: Sequence[tuple[str, float, str, str]]
) -> None:
    """Lines (text, points, weight, colour) in the middle of a box."""
    leading = [size * 1.45 / 72 for _, size, _, _ in lines]
    y = center[1] + sum(leading) / 2
    for (words, size, weight, color), height in zip(lines, leading, strict=True):
        look = {
            "fontsize": size,
            "weight": weight,
            "color": color,
            "ha": "center",
            "va": "center",
            "zorder": 3,
        }
        axes.text(center[0], y - height / 2, words, **look)
        y -= height


def _incoming(graph: NeuralGraph, group: int) -> str:
    """The weights into a group and their slots, as short as a box demands."""
    blocks: list[EdgeBlock] = [b for b in graph.blocks if b.target == group and b.view]
    shapes = dict.fromkeys(
        f"{slot_text(b)}{' slots' if len(b.slot_shape) == 1 else ''}"
        for b in blocks
        if b.slots > 1
    )
    slots = "/".join(shapes)
    words = " + ".join(incoming(blocks))
    if len(words) + len(slots) > DETAIL_WIDTH:
        words = f"{len(blocks)} blocks"
    found = (
        f"{words} · {slots}"
        if slots and len(slots) <= DETAIL_WIDTH - len(words)
        else words
    )
    return found.replace("->", "→").replace("x", TIMES)


def _draw_tag(axes: Axes, words: str, place: Point, color: str) -> None:
    """The biases of a group, a small tag on the lower border of its box."""
    look = {
        "boxstyle": "round,pad=0.25",
        "facecolor": "white",
        "edgecolor": color,
        "linewidth": 0.7,
    }
    axes.text(
        *place,
        words,
        fontsize=5.8,
        ha="center",
        va="center",
        color="#303030",
        bbox=look,
        zorder=4,
    )


def _plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


def _legend(
    graph: NeuralGraph, wires: Sequence[Wire], with_values: bool
) -> list[Artist]:
    """Handles for what occurs in the drawing."""
    handles: list[Artist] = []
    for kind in dict.fromkeys(group.kind for group in graph.groups):
        fill, border = FILLS.get(kind, OTHER_FILL)
        handles.append(Patch(facecolor=fill, edgecolor=border, label=_plural(kind)))
    if any(group.role in ENDS or group.is_pinned for group in graph.groups):
        label = "input, output or pinned"
        handles.append(
            Patch(
                facecolor="white",
                edgecolor="#404040",
                linewidth=2.2,
                label=label,
            )
        )
    if graph.biases:
        handles.append(
            Patch(
                facecolor="white",
                edgecolor="#404040",
                linewidth=0.7,
                label="tag: biases of the nodes",
            )
        )
    styles = {wire.style for wire in wires}
    for style in (
        *(s for s in LINES if s in styles),
        *sorted(styles - LINES.keys()),
    ):
        color, dashes, words = LINES.get(style, OTHER_LINE)
        handles.append(
            Line2D(
                [],
                [],
                color=color,
                linestyle=dashes,
                linewidth=1.6,
                label=words or style,
            )
        )
    if graph.weights:
        measure = (
            "norm of the values" if with_values else "log of the number of elements"
        )
        handles.append(
            Line2D(
                [],
                [],
                color="#33475b",
                linewidth=4,
                label=f"thickness: {measure}",
            )
        )
    return handles
