"""Points: rows of tensors that are optimized themselves, and are no layer's weights.

Examples are positions of particles, the Gaussians of a scene, and both factors of a
matrix factorization. Each row has a gradient of its own, and a Kronecker factor would
mix them. N rows of d numbers are a table of N vectors, as those of an embedding.
"""

from collections.abc import Sequence
from math import prod

from ngopt.graph.connectivity import elements_by_component
from ngopt.graph.groups_and_blocks import ParameterSpec, View
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_names import UNNAMED, WEIGHT
from ngopt.roles.matrices import MatrixBlock

MIN_RATIO = 4  # of rows to columns: most weights of layers have a smaller one


def tables_of_points(
    graph: NeuralGraph, roles: Sequence[str]
) -> dict[int, MatrixBlock]:
    """The parameters that are points, as tables: (1, columns, rows).

    Those of a component are points if each has many more rows than columns and no bias,
    and none is called a weight. Without names, all matrices must be points.

    roles: of all parameters.
    """
    points: set[int] = set()
    for members in elements_by_component(graph).values():
        if all(_is_tall(graph.parameters[i], roles[i]) for i in members):
            points |= members.keys()
    matrices = [i for i, spec in enumerate(graph.parameters) if len(spec.shape) > 1]
    have_names = not UNNAMED.match(graph.parameters[0].name)
    if not (have_names or points.issuperset(matrices)):
        return {}
    tables = {}
    for i in points:
        rows, *columns = graph.parameters[i].shape
        view = View(i, (1, prod(columns), rows), (0, 1, prod(columns)))
        tables[i] = MatrixBlock(view)
    return tables


def _is_tall(spec: ParameterSpec, role: str) -> bool:
    """Whether a parameter may be points, by its shape, its role and its name."""
    if role not in ("embedding", "matrix", "output") or WEIGHT.search(spec.name):
        return False
    return spec.numel > 0 and spec.shape[0] > MIN_RATIO * prod(spec.shape[1:])
