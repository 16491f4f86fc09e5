"""Chooses the base rule's numbers over whole trainings: `python -m meta_train.tune --trials 100 --processes 2`.

CMA-ES (Optuna) over about a dozen numbers; a trial trains every problem once per seed. Its score is
the mean log of how much lower the validation loss is than with the numbers it began with. Every
trial is kept in the folder's journal, from which the same command goes on; the best one's weights
file is written to `<folder>/best.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.samplers import CmaEsSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from meta_train import cli
from meta_train.candidates import Setting, gains
from meta_train.problems import DEVELOPMENT, problem_names
from meta_train.report import align
from ngopt.base.config import SoapConfig
from ngopt.base.soap import Soap
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import save_pretrained

FIRST_SEED = 2_000_000  # apart from the seeds of evaluation and of baselines' tuning

# (least, greatest, whether on a logarithmic scale); CMA-ES begins in the middle.
SPACE: dict[str, tuple[float, float, bool]] = {
    "step_size": (0.004, 0.025, True),
    "fan_exponent": (0.0, 1.0, False),
    "fan_cap": (0.5, 4.0, True),
    "weight_exponent": (0.6, 1.2, False),
    "embedding": (0.2, 5.0, True),
    "output": (0.5, 4.0, True),
    "norm": (0.2, 5.0, True),
    "bias": (0.2, 5.0, True),
    "beta1": (0.8, 0.97, False),
    "beta2": (0.9, 0.99, False),
    "beta_factor": (0.9, 0.99, False),
    "nesterov": (0.4, 1.4, False),
    "weight_decay": (0.01, 0.3, True),
    "warmup": (0.02, 0.2, True),
}


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    problems: tuple[str, ...] = ("development",)
    """Names of problems, or of lists of them."""
    trials: int = 100
    """Trials in all, those of earlier calls included."""
    seeds: int = 1
    folder: str = "runs/tune"
    processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        forbidden = set(problem_names(self.problems)) - set(DEVELOPMENT)
        if forbidden:
            raise ValueError(f"problems: expected some of the development list; got {sorted(forbidden)}")


def search(config: Config) -> optuna.Study:
    """Makes the trials that are missing; the study with all of them."""
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + config.seeds))
    setting = Setting(problem_names(config.problems), seeds, folder, config.processes)
    references = setting.measure({"start": {}})["start"]
    study = _study(config, folder)

    def objective(trial: optuna.Trial) -> float:
        changes = {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in SPACE.items()}
        name = f"trial-{trial.number}"
        found = gains(setting.measure({name: changes})[name], references)
        trial.set_user_attr("gains", found)
        print(f"trial {trial.number}: {fmean(found.values()):+.4f}")
        return fmean(found.values())

    finished = [t for t in study.trials if t.state.is_finished()]
    study.optimize(objective, n_trials=max(0, config.trials - len(finished)))
    return study


def _study(config: Config, folder: Path) -> optuna.Study:
    first = {name: getattr(SoapConfig(), name) for name in SPACE}
    sampler = CmaEsSampler(seed=config.seed)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage, study_name="base", sampler=sampler, direction="maximize", load_if_exists=True
    )
    if not study.trials:
        study.enqueue_trial(first)
    return study


def write_best(config: Config, study: optuna.Study) -> Path:
    """Writes the best trial's weights file, and `trials.json`, a line for every trial."""
    folder, best = Path(config.folder), study.best_trial
    lines = [{"trial": t.number, "score": t.value, "numbers": t.params, **t.user_attrs} for t in study.trials]
    (folder / "trials.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    stage: dict[str, Any] = {
        "program": "meta_train.tune",
        **asdict(config),
        "trial": best.number,
        "score": best.value,
    }
    base = Soap(replace(SoapConfig(), **best.params))
    path = folder / "best.safetensors"
    save_pretrained(LearnedOptimizer(base=base, recipe={"stages": [stage]}), path)
    return path


def run(config: Config) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = search(config)
    path = write_best(config, study)
    best = study.best_trial
    body = [[name, f"{getattr(SoapConfig(), name):.4g}", f"{best.params[name]:.4g}"] for name in SPACE]
    print("\n".join(align(["number", "start", "best"], body)))
    print(f"\nBest of {len(study.trials)} trials: {best.number}, {best.value:+.4f}. Written to {path}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
