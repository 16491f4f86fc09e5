"""Tunes the weights of a metanet's features over whole runs:
`python -m meta_train.selection.reweigh --weights ff`.

Truncated losses favour short-term progress, so a few numbers are chosen over whole
runs. They are factors of what the metanet's head reads (each of its 14 features,
and the graph context) and of its updates. CMA-ES (Optuna) draws their logarithms. A
trial trains every problem once. Its score is the mean of log(validation loss with the
first weights / validation loss) on the same seeds; every generation has other seeds.
Every trial is kept in the folder's journal. The same command resumes, also in several
shells at a time. At the end the mean of the better trials of the last generations is
compared with the first weights on other seeds, and written to
`<folder>/best.safetensors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite, log
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import optuna
import torch
from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial, TrialState

from harness import cli
from harness.random import derive_seed
from harness.settings import check_counts, named_settings
from harness.tables import text_table
from meta_train.comparison.optimizers import load_learned
from meta_train.problems import load_problem
from meta_train.selection.search import check_fashion
from meta_train.selection.study import run_study
from meta_train.selection.sweep import OutputGain, with_gain
from meta_train.training.unroll import Optimizee, whole_run
from meta_train.training.weights import with_stage
from ngopt.metanets import FeedForward
from ngopt.metanets.features import DECAYS
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

COLUMNS = ("weight", "gradient", *(f"momentum {decay:g}" for decay in DECAYS))
FEATURES = tuple(f"{part} {name}" for part in ("log", "sign") for name in COLUMNS)
GRAPH, UPDATE = "graph", "update"
LIMIT = 0.75  # of the logarithm of a factor
# Settings that change no trial.
IRRELEVANT = "trials", "folder", "checks"
MINIMUM_POPULATION = 4  # of CMA-ES
DIVERGED_SCORE = -10.0


@dataclass(frozen=True)
class Config:
    """Settings of the search; it uses validation data only."""

    weights: str
    """A bundled name or a weights file."""
    problems: tuple[str, ...] = ("fm-16", "fm14-32")
    """All of FashionMNIST, or your own."""
    trials: int = 160
    """Trials in all, those of earlier and other calls included."""
    population: int = 12
    """Trials of a generation."""
    checks: int = 6
    """Seeds on which the beginning and the end are compared."""
    steps: int = 1000
    folder: str = "runs/reweigh"
    seed: int = 0
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""

    def __post_init__(self) -> None:
        check_counts(self, "trials", "checks", "steps")
        if self.population < MINIMUM_POPULATION:
            raise ValueError(
                f"population: expected at least {MINIMUM_POPULATION}; "
                f"got {self.population}"
            )
        check_fashion(self.problems)


def reweighed(
    learned: LearnedOptimizer, logarithms: Mapping[str, float]
) -> LearnedOptimizer:
    """Multiplies what the head reads, and the updates, by factors.

    logarithms: of the factors, by name.
    """
    metanet = learned.metanet
    copy = metanet.reconfigured()
    assert isinstance(copy, FeedForward)
    factors = [exp(logarithms[name]) for name in FEATURES]
    factors += [exp(logarithms.get(GRAPH, 0.0))] * metanet.d_context
    first = next(copy.head.parameters())
    with torch.no_grad():
        first.mul_(first.new_tensor(factors))
    gain = OutputGain(exp(logarithms[UPDATE]))
    return with_gain(replace(learned, metanet=copy), gain)


def factor_names(learned: LearnedOptimizer) -> tuple[str, ...]:
    has_context = learned.metanet.d_context > 0
    return (*FEATURES, GRAPH, UPDATE) if has_context else (*FEATURES, UPDATE)


def whole_losses(config: Config, learned: LearnedOptimizer, *key: int) -> list[float]:
    """Validation losses of whole runs, one per problem. key: of the seed."""
    seed, losses = derive_seed(config.seed, 30, *key), []
    for name in config.problems:
        optimizee = Optimizee(load_problem(name), seed)
        losses.append(whole_run(optimizee, learned, config.steps).loss)
    return losses


def mean_gain(losses: Sequence[float], references: Sequence[float]) -> float:
    """The mean of log(reference / loss); `DIVERGED_SCORE` if any loss is not finite."""
    if not all(map(isfinite, losses)):
        return DIVERGED_SCORE
    pairs = zip(losses, references, strict=True)
    return fmean(log(reference / loss) for loss, reference in pairs)


def search(config: Config) -> optuna.Study:
    """Runs the missing trials. Returns the study with all of them."""
    learned = load_learned(config.weights, config.metanet)
    names = factor_names(learned)

    def sampler(number: int) -> CmaEsSampler:
        return CmaEsSampler(popsize=config.population, seed=config.seed + number)

    def objective(trial: optuna.Trial) -> float:
        logarithms = {name: trial.suggest_float(name, -LIMIT, LIMIT) for name in names}
        generation = trial.number // config.population
        key = f"references-{generation}"
        references = trial.study.user_attrs.get(key)
        if references is None:
            references = whole_losses(config, learned, 0, generation)
            trial.study.set_user_attr(key, references)
        losses = whole_losses(config, reweighed(learned, logarithms), 0, generation)
        trial.set_user_attr("losses", losses)
        score = mean_gain(losses, references)
        print(f"trial {trial.number}: {score:+.4f}")
        return score

    return run_study(
        Path(config.folder),
        "reweigh",
        named_settings(config, IRRELEVANT),
        config.trials,
        sampler,
        objective,
        first=dict.fromkeys(names, 0.0),
    )


def mean_of_best(trials: Sequence[FrozenTrial], population: int) -> dict[str, float]:
    """Mean numbers of the better half of the last two generations."""
    last = sorted(trials, key=lambda trial: trial.number)[-2 * population :]
    last.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    better = last[: (len(last) + 1) // 2]
    return {name: fmean(t.params[name] for t in better) for name in better[0].params}


def run(config: Config) -> None:
    study = search(config)
    learned = load_learned(config.weights, config.metanet)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    logarithms = mean_of_best(complete, config.population)
    chosen = reweighed(learned, logarithms)
    rows: list[dict[str, Any]] = []
    gains = []
    for number in range(config.checks):
        before = whole_losses(config, learned, 1, number)
        after = whole_losses(config, chosen, 1, number)
        gains.append(mean_gain(after, before))
        rows.append({"before": before, "after": after, "gain": gains[-1]})
    details = {**asdict(config), "chosen": logarithms}
    best = with_stage(chosen, "meta_train.selection.reweigh", details)
    path = Path(config.folder, "best.safetensors")
    save_pretrained(replace(best, table={"validation": rows}), path)
    table = []
    for name, logarithm in logarithms.items():
        table.append({"factor of": name, "chosen": f"{exp(logarithm):.3f}"})
    print(text_table(table))
    deviation = f" +- {stdev(gains):.4f}" if len(gains) > 1 else ""
    print(
        f"\nLog of the validation loss on {len(gains)} other seeds: lower by "
        f"{fmean(gains):.4f}{deviation}. Written to {path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
