"""Rows of the tasks' tables, those of Kofinas et al. 2024 and Lim et al. 2024."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks import classify, edit, predict, represent
from tasks.learning.task import NetworkTask, TaskConfig

# Our models that are no faster when compiled.
UNCOMPILED = ("ng-t",)

# Share of a training run in which the output head is trained alone.
OUTPUT_HEAD_FIRST = 0.6


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
    """

    settings: type[TaskConfig]
    task: type[NetworkTask]
    figures: Mapping[str, float]
    rows: tuple[Row, ...]


def _ours(label: str, model: str = "ng-gnn", **changes: Any) -> Row:
    """A model of ours. changes: of the task's config."""
    if model in UNCOMPILED:
        changes["compiled"] = False
    return Row(label, {"model": model, **changes}, is_ours=True)


def _with_probes(model: str, *counts: int, **sizes: Any) -> tuple[Row, ...]:
    """Ours, with so many probes. sizes: of the model's config."""
    return tuple(
        _ours(_label(model, count), model, probes=count, sizes=sizes)
        for count in counts
    )


def _two_headed(model: str, in_stages: bool = False, **sizes: Any) -> Row:
    """Ours with an output head, which reads the outputs for 64 probes, as in ProbeGen.

    in_stages: the output head is trained alone at first. sizes: of the model's config.
    """
    label = f"{_label(model, 64)}, two heads"
    sizes |= {"output_head_layers": 5, "dropout": 0.0}
    if in_stages:
        label += ", one after the other"
        sizes["output_head_first"] = OUTPUT_HEAD_FIRST
    return _ours(label, model, probes=64, sizes=sizes)


def _label(model: str, probes: int) -> str:
    return f"{model}, {probes} probes" if probes else model


def _baselines(*models: str, **changes: Any) -> tuple[Row, ...]:
    """changes: of the task's config."""
    return tuple(Row(model, {"model": model, **changes}) for model in models)


def _changed(table: Table, **changes: Any) -> Table:
    """Another task with the same models. changes: of its config."""
    rows = (replace(row, changes={**row.changes, **changes}) for row in table.rows)
    return replace(table, rows=tuple(rows))


def _classified(*rows: Row) -> Table:
    return Table(classify.Config, classify.Classification, {"accuracy": 100}, rows)


def _predicted(*rows: Row) -> Table:
    return Table(predict.Config, predict.Prediction, {"tau": 1, "r2": 1}, rows)


EDIT = Table(
    edit.Config,
    edit.Editing,
    {"mse": 100, "mse_unedited": 100},
    (
        *_baselines("nfn-np", "nfn-hnp", "dwsnet"),
        *_with_probes("ng-gnn", 0, 64),
        *_with_probes("ng-t", 0, 64, layers=2),
        _ours("ng-gnn, 64 probes, 8 outputs", probes=64, outputs=8),
    ),
)
WILD = _predicted(
    *_baselines("statnn", "dmc", "probegen", symmetry=False),
    *_with_probes("ng-gnn", 0, 16, scales=True),
    _two_headed("ng-gnn", in_stages=True, scales=True),
    *_with_probes("ng-t", 0, scales=True),
    _ours("ng-gnn, no activations", sizes={"activations": False, "scales": True}),
)
TABLES: dict[str, Table] = {
    "classify": _classified(
        *_baselines("mlp", "set", "statnn", "nfn-hnp", "nfn-np", "dwsnet", "probegen"),
        *_with_probes("ng-gnn", 0, 64),
        # with three it makes too few steps in the same time
        *_with_probes("ng-t", 0, 64, layers=2),
        _ours("ng-gnn, permutations alone", symmetry=False),
    ),
    "probes": _classified(
        *_baselines("probegen"),
        *_with_probes("ng-gnn", 0, 4, 16, 64),
        _two_headed("ng-gnn"),
        *_with_probes("ng-t", 64, layers=2),
        _two_headed("ng-t", layers=2),
        _two_headed("ng-gnn", in_stages=True),
        _two_headed("ng-t", in_stages=True, layers=2),
        _ours("ng-gnn, no positions", sizes={"positions": False}),
        _ours("ng-gnn, no activations", sizes={"activations": False}),
    ),
    "sizes": _classified(
        *(
            _ours(f"{n:,} networks", probes=64, limit=n)
            for n in (1000, 2500, 5000, 10_000)
        )
    ),
    "edit": EDIT,
    "edit-contrast": _changed(EDIT, edit="contrast"),
    "predict-small": _predicted(
        *_baselines("statnn", "nfn-np", "nfn-hnp", "dmc", "probegen", symmetry=False),
        *_with_probes("ng-gnn", 0, 16, scales=True),
        # with 16 its score on validation is lower without dropout
        *_with_probes("ng-gnn", 64, scales=True, dropout=0.0),
        _two_headed("ng-gnn", scales=True),
        _two_headed("ng-gnn", in_stages=True, scales=True),
        _ours("ng-gnn, no positions", sizes={"positions": False, "scales": True}),
        *_with_probes("ng-t", 0, scales=True),
    ),
    "predict-wild": WILD,
    # Wild Park has layers of 4, 8, 16 or 32 channels: the widest are kept for the test
    "predict-narrow": _changed(WILD, widest=16),
    "predict-diverse": Table(
        predict.Config,
        predict.Prediction,
        {"r2": 1, "tau": 1},
        (
            *_baselines("set", "dmc", "statnn", "probegen", symmetry=False),
            # with three it makes too few steps in the same time
            *_with_probes("gmn", 0, layers=2, scales=True),
            _two_headed("gmn", layers=2, scales=True),
            _two_headed("gmn", in_stages=True, layers=2, scales=True),
        ),
    ),
    "represent": Table(
        represent.Config,
        represent.Representation,
        {"mse": 1, "accuracy": 100},
        (
            *_baselines("mlp", "set", "nfn-np", "dwsnet"),
            *_with_probes("ng-gnn", 0),
            *_with_probes("gmn", 0),
        ),
    ),
}
