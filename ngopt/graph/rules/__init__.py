"""The rules for functions of torch: what each adds to the neural graph.

Importing a module registers its rules.
"""

from ngopt.graph.rules import (  # noqa: F401
    arithmetic,
    attention,
    complex_numbers,
    concatenation,
    convolutions,
    creation,
    einsum,
    embeddings,
    indexing,
    linear,
    norms,
    pointwise,
    pooling,
    recurrent,
    recurrent_cells,
    reductions,
    reshaping,
    writes,
)
