"""Studies of Optuna whose trials are kept in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def open_study(folder: Path, name: str) -> optuna.Study:
    """The study in a folder's journal, begun if there is none; higher values are better."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )


def write_trials(folder: Path, study: optuna.Study) -> None:
    """Writes `trials.json`, a line for every trial."""
    lines = [
        {"trial": t.number, "score": t.value, "numbers": t.params, **t.user_attrs}
        for t in study.trials
    ]
    (folder / "trials.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
