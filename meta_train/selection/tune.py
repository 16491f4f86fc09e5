"""Chooses the base rule's numbers over whole trainings:
`python -m meta_train.selection.tune --trials 100 --processes 2`.

CMA-ES (Optuna) over about a dozen numbers; a trial trains every problem once per seed.
Its score is the mean log of how much lower the validation loss is than with the numbers
it began with. Every trial is kept in the folder's journal, from which the same command
goes on; the best one's weights file is written to `<folder>/best.safetensors`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler

from harness import cli
from harness.settings import named_settings
from harness.tables import align
from meta_train.problems import DEVELOPMENT, problem_names
from meta_train.selection.candidates import Setting, gains
from meta_train.selection.studies import open_study, write_trials
from ngopt.base.config import SoapConfig
from ngopt.base.soap import Soap
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Apart from the seeds of evaluation and of baselines' tuning.
FIRST_SEED = 2_000_000

# Settings on which no trial depends.
NO_MATTER = "trials", "folder", "processes"
# How far from its present value a number may be: by a factor, or by a distance.
FACTORS = {
    "step_size": 2.5,
    "fan_cap": 3.0,
    "embedding": 4.0,
    "output": 3.0,
    "norm": 4.0,
    "bias": 4.0,
    "weight_decay": 5.0,
    "warmup": 3.0,
}
DISTANCES = {
    "fan_exponent": 0.5,
    "weight_exponent": 0.4,
    "beta1": 0.08,
    "beta2": 0.045,
    "beta_factor": 0.045,
    "nesterov": 0.6,
}


def space() -> dict[str, FloatDistribution]:
    """What is searched: present values are in the middle, where CMA-ES begins."""
    present = asdict(SoapConfig())
    found = {
        name: FloatDistribution(
            present[name] / factor, present[name] * factor, log=True
        )
        for name, factor in FACTORS.items()
    }
    for name, distance in DISTANCES.items():
        found[name] = FloatDistribution(
            present[name] - distance, present[name] + distance
        )
    return found


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
            raise ValueError(
                f"problems: expected some of the development list; got {sorted(forbidden)}"
            )


def search(config: Config) -> optuna.Study:
    """Makes the trials that are missing; the study with all of them."""
    folder = Path(config.folder)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + config.seeds))
    setting = Setting(problem_names(config.problems), seeds, folder, config.processes)
    references = setting.measure({"start": {}})["start"]
    study = _study(config, folder)

    def objective(trial: optuna.Trial) -> float:
        changes = {
            name: trial.suggest_float(name, d.low, d.high, log=d.log)
            for name, d in space().items()
        }
        name = f"trial-{trial.number}"
        found = gains(setting.measure({name: changes})[name], references)
        trial.set_user_attr("gains", found)
        print(f"trial {trial.number}: {fmean(found.values()):+.4f}")
        return fmean(found.values())

    finished = [t for t in study.trials if t.state.is_finished()]
    study.optimize(objective, n_trials=max(0, config.trials - len(finished)))
    return study


def _study(config: Config, folder: Path) -> optuna.Study:
    first = {name: getattr(SoapConfig(), name) for name in space()}
    study = open_study(folder, "base", named_settings(config, NO_MATTER))
    # one that goes on draws other numbers than it began with
    study.sampler = CmaEsSampler(seed=config.seed + len(study.trials))
    if not study.trials:
        study.enqueue_trial(first)
    return study


def write_best(config: Config, study: optuna.Study) -> Path:
    """Writes the best trial's weights file, and `trials.json`, a line for every trial."""
    folder, best = Path(config.folder), study.best_trial
    write_trials(folder, study)
    stage: dict[str, Any] = {
        "program": "meta_train.selection.tune",
        **asdict(config),
        "trial": best.number,
        "score": best.value,
    }
    base = Soap(replace(SoapConfig(), **best.params))
    path = folder / "best.safetensors"
    save_pretrained(LearnedOptimizer(base=base, recipe={"stages": [stage]}), path)
    return path


def run(config: Config) -> None:
    study = search(config)
    path = write_best(config, study)
    best = study.best_trial
    body = [
        [name, f"{getattr(SoapConfig(), name):.4g}", f"{best.params[name]:.4g}"]
        for name in space()
    ]
    print("\n".join(align(["number", "start", "best"], body)))
    print(
        f"\nBest of {len(study.trials)} trials: {best.number}, {best.value:+.4f}. Written to "
        f"{path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
