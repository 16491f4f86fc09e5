"""Tunes the numbers of the base rule over whole trainings:
`python -m meta_train.selection.tune --trials 100 --processes 2`.

CMA-ES (Optuna) over about a dozen numbers. A trial trains every problem once per seed.
Its score is the mean over problems of log(validation loss with the first numbers /
validation loss). Every trial is kept in the folder's journal, from which the same
command resumes. The best weights are written to `<folder>/best.safetensors`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler
from optuna.trial import TrialState

from harness import cli
from harness.settings import named_settings
from harness.tables import text_table
from meta_train.comparison.inner_training import Record
from meta_train.problems import DEVELOPMENT, problem_names
from meta_train.selection.base_rules import base_rule, gains, whole_trainings
from meta_train.selection.study import open_study, run_trials
from meta_train.training.weights import with_stage
from ngopt.pretrained import save_pretrained
from ngopt.soap.config import SoapConfig

# Apart from the seeds of evaluation and of baselines' tuning.
FIRST_SEED = 2_000_000

# Settings that change no trial.
IRRELEVANT = "trials", "folder", "processes"
# Largest factor, or distance, between a number and its present value.
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


def search_space() -> dict[str, FloatDistribution]:
    """The distribution of each number, with its present value in the middle."""
    present, space = asdict(SoapConfig()), {}
    for name, factor in FACTORS.items():
        low, high = present[name] / factor, present[name] * factor
        space[name] = FloatDistribution(low, high, log=True)
    for name, distance in DISTANCES.items():
        low, high = present[name] - distance, present[name] + distance
        space[name] = FloatDistribution(low, high)
    return space


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
                "problems: expected some of the development list; "
                f"got {sorted(forbidden)}"
            )


def search(config: Config) -> optuna.Study:
    """Runs the missing trials. Returns the study with all of them."""
    folder, space = Path(config.folder), search_space()
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + config.seeds))
    problems = problem_names(config.problems)

    def trained(name: str, changes: Mapping[str, float]) -> list[Record]:
        variants = {name: base_rule(changes)}
        found = whole_trainings(variants, problems, seeds, folder, config.processes)
        return found[name]

    references = trained("start", {})
    settings = named_settings(config, IRRELEVANT)
    first = {name: getattr(SoapConfig(), name) for name in space}
    study = open_study(folder, "base", settings, first)
    # a resumed search draws other numbers than the first
    started = [t for t in study.trials if t.state != TrialState.WAITING]
    sampler = CmaEsSampler(seed=config.seed + len(started))

    def objective(trial: optuna.Trial) -> float:
        changes = {}
        for name, d in space.items():
            changes[name] = trial.suggest_float(name, d.low, d.high, log=d.log)
        found = gains(trained(f"trial-{trial.number}", changes), references)
        trial.set_user_attr("gains", found)
        score = fmean(found.values())
        print(f"trial {trial.number}: {score:+.4f}")
        return score

    run_trials(study, folder, config.trials, lambda number: sampler, objective)
    return study


def run(config: Config) -> None:
    study = search(config)
    best, path = study.best_trial, Path(config.folder, "best.safetensors")
    details = {**asdict(config), "trial": best.number, "score": best.value}
    chosen = with_stage(base_rule(best.params), "meta_train.selection.tune", details)
    save_pretrained(chosen, path)
    table = []
    for name in search_space():
        start, found = getattr(SoapConfig(), name), best.params[name]
        row = {"number": name, "start": f"{start:.4g}", "best": f"{found:.4g}"}
        table.append(row)
    print(text_table(table))
    print(
        f"\nBest of {len(study.trials)} trials: {best.number}, {best.value:+.4f}. "
        f"Written to {path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
