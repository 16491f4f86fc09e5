"""An Optuna study whose trials are kept in a folder, shared by several processes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from harness.files import make_folder
from harness.settings import check_settings

Sampler = Callable[[int], BaseSampler]
"""From the number of trials so far to the sampler of the next trial."""


def run_study(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    trials: int,
    sampler: Sampler,
    objective: Callable[[optuna.Trial], float],
    first: Mapping[str, float] | None = None,
) -> optuna.Study:
    """Runs trials until so many are complete, then writes `trials.json`, a line each.

    The study is in the folder's journal, which is made if there is none; other
    processes may run trials of it at the same time. Higher values of the objective are
    better. settings: all that the values depend on. first: numbers of the first trial.

    Raises ValueError if the study was begun with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_folder(folder)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    stored = study.user_attrs.get("settings")
    if stored is None:
        study.set_user_attr("settings", dict(settings))
    else:
        check_settings(f"folder '{folder}'", stored, settings)
    if first is not None and not study.trials:
        study.enqueue_trial(dict(first))
    while len(study.get_trials(states=(TrialState.COMPLETE,))) < trials:
        study.sampler = sampler(len(study.trials))
        study.optimize(objective, n_trials=1)
    lines = []
    for trial in study.trials:
        record = {"trial": trial.number, "score": trial.value, "numbers": trial.params}
        lines.append(json.dumps({**record, **trial.user_attrs}))
    (folder / "trials.json").write_text("\n".join(lines) + "\n")
    return study
