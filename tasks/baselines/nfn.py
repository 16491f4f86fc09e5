"""NFN: neural functional networks, NP and HNP (Zhou et al. 2023, sections 2.2 and 3).

Both are `NPLayer`s. What their experiments add is left out: Fourier features of
parameters, and encodings of inputs and outputs.
"""

from __future__ import annotations

from tasks.baselines.chains import chain_with_fixed_ends, chain_with_moving_ends
from tasks.baselines.equivariant import EquivariantModel


class NFNNP(EquivariantModel):
    """The baseline "nfn-np": permutations of inputs and outputs are taken for
    symmetries too."""

    name = "nfn-np"
    chain_of_graph = staticmethod(chain_with_moving_ends)


class NFNHNP(EquivariantModel):
    """The baseline "nfn-hnp": permutations of hidden neurons alone."""

    name = "nfn-hnp"
    chain_of_graph = staticmethod(chain_with_fixed_ends)
