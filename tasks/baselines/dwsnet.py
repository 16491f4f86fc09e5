"""DWSNet: deep weight space networks (Navon et al. 2023, sections 4 and 5).

Their layer spans all linear maps that commute with permutations of hidden neurons. That
is the space of maps which Zhou et al. 2023 call HNP, so that `NPLayer` computes both;
as in the published code, maxima stand for means here. Left out are its attention and
normalisation within layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.baselines.chains import chain_with_fixed_ends
from tasks.baselines.equivariant import EquivariantConfig, EquivariantModel


@dataclass(frozen=True)
class DWSNetConfig(EquivariantConfig):
    """As `EquivariantConfig`; sizes are those of the paper's experiments on INRs."""

    layers: int = 4
    head: tuple[int, ...] = ()


class DWSNet(EquivariantModel):
    """The baseline "dwsnet", with a linear head on what is pooled."""

    name = "dwsnet"
    chain_of_graph = staticmethod(chain_with_fixed_ends)
    pool = "max"
