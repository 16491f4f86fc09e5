"""What a network, its first gradient and its horizon say, as a few numbers.

Numbers do not depend on the scale of the loss, or on the order of neurons. Those of
measured trainings are cached beside the outcomes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import append_line, read_lines
from meta_train.step_size.copies import SEEDS
from meta_train.step_size.trainings import Training, first_gradients
from ngopt import build_graph
from ngopt.learned_step.features import (
    FEATURES,
    LOG_ZERO,
    MIN_SIZE,
    OF_GRADIENTS,
    OF_WEIGHTS,
    gradient_features,
    inverse_init_rms,
    known_features,
    matrices_of,
    weight_features,
)
from ngopt.measurements import dense_counts, spectral_excess
from ngopt.roles.from_graph import ParameterRole, roles_of
from ngopt.soap.config import Measured

GRAPHS = 2
HORIZON = ["log steps", "log steps below 500"]
CHOSEN: list[str] = list(FEATURES)  # those of the library
ALL_OF_GRADIENTS = [
    *OF_GRADIENTS,
    "mean log rank",
    "first log rank",
    "last log rank",
    "tails",
]


TINY = 1e-30
ITERATIONS = 4  # of a power iteration
OTHERS_OF_WEIGHTS = "largest log size", "first log size", "last log size"


@dataclass(frozen=True)
class Table:
    """Parameters with their roles and first gradients."""

    roles: Sequence[ParameterRole]
    params: Sequence[Tensor]
    grads: Sequence[Tensor]

    @cached_property
    def matrices(self) -> list[int]:
        return matrices_of(self.roles)


def features(table: Table, total_steps: int) -> dict[str, float]:
    """Features by name; all are finite."""
    shapes = [tuple(p.shape) for p in table.params]
    found = known_features(table.roles, shapes, total_steps)
    found["log steps below 500"] = min(found["log steps"], 0.0)
    found["has tables"] = float(found["share of tables"] > 0)
    found["no matrices"] = float(not table.matrices)
    found |= _of_weights(table)
    found |= _of_gradients(table)
    for name, value in found.items():
        found[name] = float(value) if math.isfinite(value) else 0.0
    return found


def _of_weights(table: Table) -> dict[str, float]:
    """Sizes relative to PyTorch's initial weights."""
    if not table.matrices:
        return dict.fromkeys((*OF_WEIGHTS, *OTHERS_OF_WEIGHTS), 0.0)
    inverse = inverse_init_rms(table.roles, table.matrices)
    sizes, excesses = [], []
    for i, factor in zip(table.matrices, inverse, strict=True):
        p = table.params[i].detach()
        sizes.append(p.square().mean().sqrt() * factor)
        excesses.append(spectral_excess(p))
    all_sizes = torch.stack(sizes)
    found = weight_features(all_sizes, torch.stack(excesses))
    logs = all_sizes.clamp(min=MIN_SIZE).log().tolist()
    nonzero = [size for size in logs if size >= LOG_ZERO]
    others = max(nonzero, default=0.0), max(logs[0], LOG_ZERO), max(logs[-1], LOG_ZERO)
    values = {name: float(value) for name, value in found.items()}
    return values | dict(zip(OTHERS_OF_WEIGHTS, others, strict=True))


def _of_gradients(table: Table) -> dict[str, float]:
    """Of the first gradient: how its size changes with depth, its rank and zeros."""
    found = _known_of_gradients(table)
    ranks, tails = [], []
    for i in table.matrices:
        grad = table.grads[i].detach()
        square = grad.square().sum()
        if not square.isfinite() or square == 0:  # a training that diverged before
            continue
        ranks.append(_log_rank(grad))
        shares = grad.square() / square
        fourth = shares.square().sum() * grad.numel()
        tails.append(float(fourth.clamp(min=TINY).log()))
    found["mean log rank"] = _mean(ranks)
    found["first log rank"] = ranks[0] if ranks else 0.0
    found["last log rank"] = ranks[-1] if ranks else 0.0
    found["tails"] = _mean(tails)
    return found


def _known_of_gradients(table: Table) -> dict[str, float]:
    """The features `OF_GRADIENTS` of the library."""
    if not table.matrices:
        return dict.fromkeys(OF_GRADIENTS, 0.0)
    rms, grad_rms = [], []
    for p, grad in zip(table.params, table.grads, strict=True):
        rms.append(p.detach().square().mean().sqrt())
        grad_rms.append(grad.square().mean().sqrt())
    depths = torch.tensor([table.roles[i].depth for i in table.matrices])
    numels = torch.tensor([float(p.numel()) for p in table.params])
    density = torch.ones(len(numels), dtype=torch.float64)
    counts = dense_counts(table.grads, table.matrices)
    density[table.matrices] = counts / numels[table.matrices]
    measured = Measured(torch.stack(grad_rms), torch.stack(rms), density=density)
    found = gradient_features(depths, numels, measured, table.matrices)
    return {name: float(value) for name, value in found.items()}


def _log_rank(grad: Tensor) -> float:
    """log of the stable rank |G|_F^2 / |G|_2^2, at most that of the least side."""
    g = grad.reshape(len(grad), -1)
    if len(g) > g.shape[1]:
        g = g.mT
    g = g / g.abs().max().clamp(min=TINY)
    gram = g @ g.mT
    v = gram[gram.diagonal().argmax()]
    for _ in range(ITERATIONS):
        length = v.norm().clamp(min=TINY)
        v = gram @ (v / length)
    largest = v.norm().clamp(min=TINY)
    rank = gram.trace() / largest
    return float(rank.clamp(min=1.0).log())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def feature_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Sets of features, from small to large. names: of all."""
    of_graph = [name for name in names if name not in ALL_OF_GRADIENTS]
    without_gradients = [name for name in CHOSEN if name not in OF_GRADIENTS]
    return {
        "horizon": HORIZON,
        "chosen without gradients": without_gradients,
        "chosen": CHOSEN,
        "graph": of_graph,
        "all": list(names),
    }


def read_features(
    trainings: Sequence[Training], path: Path
) -> tuple[list[str], np.ndarray]:
    """Names of d features, and values (n, 2 graphs, 2 seeds, d).

    Graphs: of named parameters, and of parameters without names, whose roles can
    differ. New values are added to a file.
    """
    known = {}
    if path.exists():
        known = {record["seed"]: record["features"] for record in read_lines([path])}
    rows = []
    for training in trainings:
        if training.seed not in known:
            known[training.seed] = features_of(training)
            record = {"seed": training.seed, "features": known[training.seed]}
            append_line(path, record)
        rows.append(known[training.seed])
    names = list(rows[0][0][0])
    values = []
    for row in rows:
        for graph in row:
            for found in graph:
                values.append([found[name] for name in names])
    shape = len(rows), GRAPHS, len(SEEDS), len(names)
    return names, np.array(values).reshape(shape)


def features_of(training: Training) -> list[list[dict[str, float]]]:
    """Features of a training, for each graph and seed (see `read_features`)."""
    found: list[list[dict[str, float]]] = [[], []]
    for seed in SEEDS:
        model, grads = first_gradients(training, seed)
        params = list(model.parameters())
        values = [p.detach() for p in params]
        for own, given in zip(found, (model.named_parameters(), params), strict=True):
            table = Table(roles_of(build_graph(given)), values, grads)
            own.append(features(table, training.steps))
    return found
