"""`draw`: drawings of neural graphs. matplotlib is imported when one is made."""

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.views.networkx_and_pyg import require

FORMATS = (".png", ".svg")
RESOLUTION = 150  # dots per inch of a PNG file
MAX_PIXELS = 60_000  # on a side; matplotlib allows 65,535


def draw(
    graph: NeuralGraph,
    path: str | os.PathLike[str],
    values: Sequence[Tensor] | None = None,
) -> None:
    """Draws a graph into a PNG or SVG file: groups as boxes from top to bottom by
    depth, blocks as arrows.

    Args:
        values: One tensor per parameter, `(*shape, *features)`. The thickness of an
            arrow grows with the norm of its values, without values with the log of its
            number of elements.

    Raises:
        ValueError: If the file has another suffix or the values do not fit.
        ImportError: If matplotlib is missing.
    """
    suffix = format_of(path)
    require("matplotlib", "draw")
    from ngopt.graph.drawing.figure import graph_figure

    figure = graph_figure(graph, values)
    resolution = min(RESOLUTION, MAX_PIXELS / max(figure.get_size_inches()))
    figure.savefig(
        path, format=suffix, dpi=resolution, facecolor="white", bbox_inches="tight"
    )


def format_of(path: str | os.PathLike[str]) -> str:
    """The suffix of a path, "png" or "svg"; raises ValueError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"draw: expected a file ending in {' or '.join(FORMATS)}; got '{path}'"
        )
    return suffix[1:]
