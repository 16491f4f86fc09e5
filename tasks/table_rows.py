"""Rows of the tasks' tables, those of Kofinas et al. 2024 and Lim et al. 2024."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tasks import classify, edit, predict, represent
from tasks.learning.task import NetworkTask, TaskConfig

# Our models that are no faster when compiled.
UNCOMPILED = ("ng-t",)

# Share of a training in which the second of two heads is trained alone.
ANSWERS_FIRST = 0.6


@dataclass(frozen=True)
class Row:
    """A model of a table.

    changes: of the task's config. is_ours: trained with several seeds.
    """

    label: str
    changes: Mapping[str, Any]
    is_ours: bool = False


@dataclass(frozen=True)
class Table:
    """A table of one task.

    figures: factors of the results that are columns.
    curve: a setting over which the first figure is drawn, and its label.
    """

    settings: type[TaskConfig]
    task: type[NetworkTask]
    figures: Mapping[str, float]
    rows: tuple[Row, ...]
    curve: tuple[str, str] | None = None


def _probed(model: str, *counts: int, **sizes: Any) -> tuple[Row, ...]:
    """Ours, with so many probes. sizes: of the model's config."""
    return tuple(_own(_label(model, n), model, probes=n, sizes=sizes) for n in counts)


def _two_headed(model: str, in_turn: bool = False, **sizes: Any) -> Row:
    """Ours with a second head that reads the outputs for 64 probes, as in ProbeGen.

    in_turn: the second head is trained alone at first. sizes: of the model's config.
    """
    label = f"{_label(model, 64)}, two heads{' in turn' if in_turn else ''}"
    heads = {"answer_layers": 5, "dropout": 0.0}
    if in_turn:
        heads["answers_first"] = ANSWERS_FIRST
    return _own(label, model, probes=64, sizes={**sizes, **heads})


def _own(label: str, model: str = "ng-gnn", **changes: Any) -> Row:
    """A row of ours. changes: of the task's config."""
    if model in UNCOMPILED:
        changes["compiled"] = False
    return Row(label, {"model": model, **changes}, True)


def _label(model: str, probes: int) -> str:
    return f"{model}, {probes} probes" if probes else model


def _others(*models: str, **changes: Any) -> tuple[Row, ...]:
    """Baselines. changes: of the task's config."""
    return tuple(Row(model, {"model": model, **changes}) for model in models)


def _changed(table: Table, **changes: Any) -> Table:
    """Another task with the same models. changes: of its config."""
    rows = (replace(row, changes={**row.changes, **changes}) for row in table.rows)
    return replace(table, rows=tuple(rows))


_classified = partial(
    Table, classify.Config, classify.Classification, {"accuracy": 100}
)
_predicted = partial(Table, predict.Config, predict.Prediction, {"tau": 1, "r2": 1})

CLASSIFY = _classified(
    (
        *_others("mlp", "set", "statnn", "nfn-hnp", "nfn-np", "dwsnet", "probegen"),
        *_probed("ng-gnn", 0, 64),
        # with three it makes too few steps in the same time
        *_probed("ng-t", 0, 64, layers=2),
        _own("ng-gnn, permutations alone", symmetry=False),
    ),
)
PROBES = _classified(
    (
        *_others("probegen"),
        *_probed("ng-gnn", 0, 4, 16, 64),
        _two_headed("ng-gnn"),
        *_probed("ng-t", 64, layers=2),
        _two_headed("ng-t", layers=2),
        _two_headed("ng-gnn", in_turn=True),
        _two_headed("ng-t", in_turn=True, layers=2),
        _own("ng-gnn, no positions", sizes={"positions": False}),
        _own("ng-gnn, no activations", sizes={"activations": False}),
    ),
    curve=("probes", "probes"),
)
SIZES = _classified(
    tuple(
        _own(f"{n:,} networks", probes=64, limit=n) for n in (1000, 2500, 5000, 10_000)
    ),
    curve=("limit", "networks for training"),
)
EDIT = Table(
    edit.Config,
    edit.Editing,
    {"mse": 100, "mse_unedited": 100},
    (
        *_others("nfn-np", "nfn-hnp", "dwsnet"),
        *_probed("ng-gnn", 0, 64),
        *_probed("ng-t", 0, 64, layers=2),
        _own("ng-gnn, 64 probes, 8 outputs", probes=64, outputs=8),
    ),
)
CONTRAST = _changed(EDIT, edit="contrast")
SMALL = _predicted(
    (
        *_others("statnn", "nfn-np", "nfn-hnp", "dmc", "probegen", symmetry=False),
        *_probed("ng-gnn", 0, 16, scales=True),
        # with 16 its score on validation is lower without dropout
        *_probed("ng-gnn", 64, scales=True, dropout=0.0),
        _two_headed("ng-gnn", scales=True),
        _two_headed("ng-gnn", in_turn=True, scales=True),
        _own("ng-gnn, no positions", sizes={"positions": False, "scales": True}),
        *_probed("ng-t", 0, scales=True),
    ),
)
WILD = _predicted(
    (
        *_others("statnn", "dmc", "probegen", symmetry=False),
        *_probed("ng-gnn", 0, 16, scales=True),
        _two_headed("ng-gnn", in_turn=True, scales=True),
        *_probed("ng-t", 0, scales=True),
        _own("ng-gnn, no activations", sizes={"activations": False, "scales": True}),
    ),
)
# Layers of Wild Park have 4, 8, 16 or 32 channels: the widest are kept for the test.
NARROW = _changed(WILD, widest=16)
DIVERSE = Table(
    predict.Config,
    predict.Prediction,
    {"r2": 1, "tau": 1},
    (
        *_others("set", "dmc", "statnn", "probegen", symmetry=False),
        # with three it makes too few steps in the same time
        *_probed("gmn", 0, layers=2, scales=True),
        _two_headed("gmn", layers=2, scales=True),
        _two_headed("gmn", in_turn=True, layers=2, scales=True),
    ),
)
REPRESENT = Table(
    represent.Config,
    represent.Representation,
    {"mse": 1, "accuracy": 100},
    (
        *_others("mlp", "set", "nfn-np", "dwsnet"),
        *_probed("ng-gnn", 0),
        *_probed("gmn", 0),
    ),
)
TABLES: dict[str, Table] = {
    "classify": CLASSIFY,
    "probes": PROBES,
    "sizes": SIZES,
    "edit": EDIT,
    "edit-contrast": CONTRAST,
    "predict-small": SMALL,
    "predict-wild": WILD,
    "predict-narrow": NARROW,
    "predict-diverse": DIVERSE,
    "represent": REPRESENT,
}
