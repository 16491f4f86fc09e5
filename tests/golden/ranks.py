"""Training runs of the default on two ranks (gloo)."""

import tempfile
from pathlib import Path

import torch

from ngopt import NGOptimizer
from tests.divided_networks import divided
from tests.divided_networks import network as divided_network
from tests.golden.trajectories import STEPS, Snapshot, state_of, values
from tests.processes import run, train

CASES = [
    (kind, name, dtype, horizon)
    for kind in ("ddp", "fsdp")
    for name in ("mlp", "conv", "words", "gpt small")
    for dtype in ("float64", "float32")
    for horizon in (STEPS, None)
]


def snapshots() -> list[tuple[str, str, list[Snapshot]]]:
    """Name, dtype and snapshots of each case; the last also has averages as weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "snapshots.pt")
        run(_write, 2, path)
        torch.serialization.add_safe_globals([Snapshot])
        return torch.load(path)


def _write(rank: int, size: int, path: Path) -> None:
    recorded = []
    for kind, name, dtype, horizon in CASES:
        model, settings, part = divided(divided_network(name, dtype), kind, size)
        named = model.named_parameters()
        optimizer = NGOptimizer(named, total_steps=horizon, **settings)
        taken = []
        for step in range(STEPS):
            train(model, optimizer, range(step, step + 1), *part)
            taken.append(Snapshot(values(model), {}))
        taken[-1] = Snapshot(values(model), state_of(optimizer))
        optimizer.load_average()
        taken.append(Snapshot(values(model), {}))
        known = "horizon" if horizon else "no horizon"
        recorded.append((f"{kind}, {name}, {known}", dtype, taken))
    if rank == 0:
        torch.save(recorded, path)
