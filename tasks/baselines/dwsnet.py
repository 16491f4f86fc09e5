"""DWSNet: deep weight space networks (Navon et al. 2023, sections 4 and 5).

Its layers span all linear maps that commute with permutations of hidden neurons, as
the HNP layers of Zhou et al. 2023 do, so it is made of `NPLayer`s. As in the published
code, they have maxima instead of means. Its attention and its normalisation within
layers are left out.
"""

from dataclasses import dataclass

from tasks.baselines.nfn import NFNHNP, NFNConfig


@dataclass(frozen=True)
class DWSNetConfig(NFNConfig):
    """Defaults as in the paper's experiments on INRs."""

    layers: int = 4
    head: tuple[int, ...] = ()


class DWSNet(NFNHNP):
    """The baseline "dwsnet", with a linear head on pooled features."""

    name = "dwsnet"
    Config = DWSNetConfig
    pool = "max"
