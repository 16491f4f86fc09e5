"""The rules for functions of torch: what each adds to the neural graph.

Importing a module registers its rules.
"""

from ngopt.graph.rules import (  # noqa: F401
    attention,
    constants,
    convolutions,
    einsum,
    embeddings,
    indexing,
    linear,
    neuron_pairs,
    norms,
    pointwise,
    recurrent,
    reductions,
    reshaping,
)
