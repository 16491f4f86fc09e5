"""Features of measured trainings, cached beside the outcomes, and sets of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.files import append_line, read_lines
from meta_train.step_size.copies import SEEDS
from meta_train.step_size.features import Table, features
from meta_train.step_size.starts import first_gradients
from meta_train.step_size.trainings import Training
from ngopt import build_graph
from ngopt.base.network_features import FEATURES, OF_GRADIENTS
from ngopt.roles.from_graph import roles_of

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
