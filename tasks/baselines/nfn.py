"""NFN: neural functional networks, NP and HNP (Zhou et al. 2023, sections 2.2 and 3).

Fourier features of parameters, and encodings of inputs and outputs, which are part of
the paper's experiments, are left out.
"""

from tasks.baselines.equivariant import EquivariantModel


class NFNNP(EquivariantModel):
    """The baseline "nfn-np", also invariant to permutations of inputs and outputs."""

    name = "nfn-np"
    permutes_ends = True


class NFNHNP(EquivariantModel):
    """The baseline "nfn-hnp", invariant to permutations of hidden neurons."""

    name = "nfn-hnp"
