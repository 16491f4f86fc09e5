"""The table that `NeuralGraph.summary` returns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from ngopt.graph.connectivity import components
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    NeuronGroup,
    Topology,
    is_diagonal,
)

NAME_WIDTH = 50  # characters of a group's name
LISTED = 3  # blocks or sources of a group that are listed; of more, the number
HEADER = (
    "", "group", "nodes", "from", "edges and biases", "slots", "elements", "activation",
    "role",
)  # fmt: skip
RIGHT_ALIGNED = ("", "nodes", "elements")


def summary(graph: Topology) -> str:
    """See `NeuralGraph.summary`."""
    rows = [HEADER, *[_row(graph, run) for run in runs(graph)]]
    return "\n".join(table_lines(rows, RIGHT_ALIGNED) + _coverage(graph))


def table_lines(
    rows: Sequence[Sequence[str]], right_aligned: Sequence[str] = ()
) -> list[str]:
    """The rows of a table as lines with aligned columns.

    rows: the first has the titles of the columns. right_aligned: some of the titles.
    """
    titles = rows[0]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for title, cell, width in zip(titles, row, widths, strict=True):
            is_number = title in right_aligned
            cells.append(cell.rjust(width) if is_number else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def runs(graph: Topology) -> list[list[int]]:
    """The groups in order: the pieces of a norm over concatenated groups together, each
    other group alone."""

    def key(number: int) -> tuple:
        """Equal for neighbouring groups that are pieces of one norm."""
        blocks = graph.blocks_into(number)
        is_scaled = bool(blocks) and all(
            b.view is not None and is_diagonal(b) for b in blocks
        )
        kinds = [bias.kind for bias in graph.biases_of(number)]
        group = graph.groups[number]
        alone = None if is_scaled else number
        return group.name, _role(group), group.activation, kinds, alone

    return [list(run) for _, run in groupby(range(len(graph.groups)), key)]


def merged(
    graph: Topology, run: Sequence[int]
) -> tuple[NeuronGroup, list[EdgeBlock], list[Bias]]:
    """Groups as one: its size, the blocks into it and its biases."""
    size = 0
    blocks: list[EdgeBlock] = []
    biases: list[Bias] = []
    for member in run:
        size += graph.groups[member].size
        blocks += graph.blocks_into(member)
        biases += graph.biases_of(member)
    return replace(graph.groups[run[0]], size=size), blocks, biases


def _row(graph: Topology, run: Sequence[int]) -> tuple[str, ...]:
    group, blocks, biases = merged(graph, run)
    number = f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}"
    elements = sum(place.view.numel for place in (*blocks, *biases) if place.view)
    sources = sorted({block.source for block in blocks})
    places = incoming(blocks) + counted([bias.kind for bias in biases])
    return (
        number,
        shorten(group.name, NAME_WIDTH),
        f"{group.size:,}",
        _listed(list(map(str, sources)), "groups"),
        " + ".join(places),
        _listed(slot_texts(blocks), "shapes"),
        f"{elements:,}",
        group.activation or "",
        _role(group),
    )


def _listed(words: Sequence[str], plural: str) -> str:
    return ", ".join(words) if len(words) <= LISTED else f"{len(words)} {plural}"


def _role(group: NeuronGroup) -> str:
    return f"{group.role}, pinned" if group.is_pinned else group.role


def incoming(blocks: Sequence[EdgeBlock]) -> list[str]:
    """The blocks into a group in words: sizes of weights, kinds of edges of value 1."""
    weights: list[str] = []
    constants: list[str] = []
    sources = targets = 0
    for block in blocks:
        groups, n_target, n_source = block.shape
        if block.view is None:
            constants.append(block.kind)
            continue
        sizes = f"{n_source} -> {n_target}"
        if is_diagonal(block):
            sizes = "one to one"
        elif groups > 1:
            sizes = f"{groups} groups of {sizes}"
        weights.append(sizes)
        sources += groups * n_source
        targets = max(targets, groups * n_target)
    sizes = counted(weights)
    if len(sizes) > LISTED:
        sizes = [f"{len(weights)} blocks: {sources} -> {targets}"]
    return sizes + counted(constants)


def slot_texts(blocks: Sequence[EdgeBlock]) -> list[str]:
    """The different slots of weights such as 3x3; 1 for a single one."""
    texts = {}
    for block in blocks:
        if block.view:
            texts["x".join(map(str, block.slot_shape)) or "1"] = None
    return list(texts)


def counted(words: Sequence[str]) -> list[str]:
    """Each word once, in order, with its number where that is not 1."""
    texts = []
    for word, number in Counter(words).items():
        if number == 1:
            texts.append(word)
        elif " -> " in word:
            texts.append(f"{number} x ({word})")
        else:
            texts.append(f"{number} x {word}")
    return texts


def shorten(name: str, width: int) -> str:
    """A name of at most `width` characters: its end, from a dot on unless little would
    be left."""
    if len(name) <= width:
        return name
    end = name[3 - width :]
    after_dot = end.partition(".")[2]
    return "..." + (after_dot if len(after_dot) > width / 2 else end)


def _coverage(graph: Topology) -> list[str]:
    connected = {end for b in graph.blocks for end in (b.source, b.target)}
    alone = sum(b.view.numel for b in graph.biases if b.group not in connected)
    nodes = sum(group.size for group in graph.groups)
    count = len(set(components(graph)))
    plural = "" if count == 1 else "s"
    lines = [
        f"{nodes:,} nodes in {len(graph.groups)} groups, {graph.numel:,} parameter "
        f"elements in {len(graph.weights)} blocks and {len(graph.biases)} biases; "
        f"{count} component{plural}, {alone:,} elements unconnected"
    ]
    by_reason: dict[str, list[str]] = {}
    for name in graph.unplaced:
        reason = graph.reasons.get(name, "without a place")
        by_reason.setdefault(reason, []).append(name)
    return lines + [f"{why}: {', '.join(names)}" for why, names in by_reason.items()]
