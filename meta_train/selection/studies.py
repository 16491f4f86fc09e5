"""Studies of Optuna whose trials are kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from harness.files import make_folder
from harness.settings import differences


def open_study(folder: Path, name: str, settings: Mapping[str, Any]) -> optuna.Study:
    """The study in a folder's journal, begun if there is none; higher values are
    better.

    settings: all that its values depend on. Raises ValueError if it was begun with
    others.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_folder(folder)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    known = study.user_attrs.get("settings")
    if known is None:
        study.set_user_attr("settings", dict(settings))
    elif told := differences(known, settings):
        raise ValueError(f"folder '{folder}': begun with other settings: {told}")
    return study


def claim(
    study: optuna.Study, folder: Path, count: int, sampler: Callable[[int], BaseSampler]
) -> tuple[optuna.Trial, FileLock] | None:
    """The next trial, and the lock that its process holds until it has told its value.

    None if as many as `count` are done or under way, in this process or others on this
    machine; those whose process has ended are given up. sampler: from the number of
    trials so far.
    """
    with FileLock(folder / "claim.lock"):
        _give_up_lost(study, folder)
        states = TrialState.COMPLETE, TrialState.RUNNING
        if len(study.get_trials(states=states)) >= count:
            return None
        study.sampler = sampler(len(study.trials))
        trial = study.ask()
        lock = _lock(folder, trial.number)
        lock.acquire()
        return trial, lock


def _give_up_lost(study: optuna.Study, folder: Path) -> None:
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        try:
            with _lock(folder, trial.number).acquire(timeout=0):
                study.tell(trial.number, state=TrialState.FAIL)
        except Timeout:
            pass  # its process lives


def _lock(folder: Path, number: int) -> FileLock:
    return FileLock(folder / f"trial-{number}.lock")


def write_trials(folder: Path, study: optuna.Study) -> None:
    """Writes `trials.json`, a line for every trial."""
    lines = [
        {"trial": t.number, "score": t.value, "numbers": t.params, **t.user_attrs}
        for t in study.trials
    ]
    (folder / "trials.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
