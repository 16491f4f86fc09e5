"""The paper's comparison (Kofinas et al. 2024, Table 2 and Figure 3): its problems,
optimizers and figures."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Suppress

from meta_train.comparison import leaderboard
from meta_train.comparison.leaderboard import OURS
from meta_train.comparison.optimizers import OPEN

BASELINES = ("adam", "adam-cosine", "schedule-free", "muon-cosine", "soap-cosine")
FIVE = ("ff", "lstm", "nfn", "ng-gnn", "ng-t")
# as in the paper: without the number of steps
FIVE_OPEN = tuple(name + OPEN for name in FIVE)

# Test accuracy in per cent, mean and deviation over five seeds: FashionMNIST, CIFAR-10.
PUBLISHED = {
    "adam": ((80.97, 0.66), (54.76, 2.82)),
    "ff": ((85.08, 0.14), (57.55, 1.06)),
    "lstm": ((85.69, 0.23), (59.10, 0.66)),
    "nfn": ((83.78, 0.58), (57.95, 0.64)),
    "ng-gnn": ((85.91, 0.37), (64.37, 0.34)),
    "ng-t": ((86.52, 0.19), (60.79, 0.51)),
}


@dataclass(frozen=True)
class Config(leaderboard.Config):
    """Settings of the comparison, with curves of the test split. Both programs share
    the runs of a folder."""

    problems: Suppress[tuple[str, ...]] = ("paper",)
    optimizers: tuple[str, ...] = (*BASELINES, *FIVE, *FIVE_OPEN, OURS)
    """Names of baselines or of bundled weights, or paths of weights files."""
    curve_split: Suppress[str] = "test"
    folder: str = "runs/paper"
