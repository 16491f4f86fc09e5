"""Records of float64 training runs, to which other machines agree to about 1e-9.

Of each tensor, after steps 1, 5 and the last: its norm and two projections. Of each
graph: hashes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden import structures, trajectories
from tests.golden.trajectories import Case, Snapshot, Unroll

PATH = Path(__file__).with_name("records.json")
RECORDED_STEPS = 1, 5
SLOW = "wide, no horizon", "metanet ng-t, gpt", "metanet ng-t, vit"  # not recorded


def recorded_cases() -> list[Case | Unroll]:
    return [case for case in trajectories.cases("float64") if case.name not in SLOW]


def numbers_of(taken: list[Snapshot]) -> dict[str, list[float]]:
    """By parameter: norm and projections after each recorded step."""
    recorded = [taken[step - 1] for step in RECORDED_STEPS if step < len(taken)]
    numbers: dict[str, list[float]] = {}
    for snapshot in (*recorded, taken[-1]):
        for name, x in snapshot.parameters.items():
            numbers.setdefault(name, []).extend(projections(x))
    return numbers


def projections(x: Tensor) -> list[float]:
    """The root mean square, and two sums with fixed weights."""
    x = torch.view_as_real(x) if x.is_complex() else x
    x = x.detach().double().flatten()
    position = torch.arange(len(x), dtype=torch.float64)
    root = len(x) ** 0.5
    rms = float(x.norm()) / root
    waves = (position * 0.7 + 0.3).cos(), (position * position * 0.37).sin()
    return [rms, *(float(x @ wave) / root for wave in waves)]


def write() -> None:
    """Writes the records of this checkout."""
    runs: dict[str, Any] = {}
    for case in recorded_cases():
        numbers = numbers_of(trajectories.snapshots(case))
        runs[case.name] = {
            name: [float(f"{value:.9g}") for value in values]
            for name, values in numbers.items()
        }
    graphs = {name: list(parts.values()) for name, parts in structures.graphs()}
    text = json.dumps({"runs": runs, "graphs": graphs}, separators=(",", ":"))
    PATH.write_text(text.replace("},", "},\n") + "\n")
