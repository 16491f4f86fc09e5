"""Chooses what each feature weighs over whole runs:
`python -m meta_train.selection.reweigh --weights ff`.

Truncated losses reward what lowers the loss now. Few numbers can be chosen by what a
whole training comes to: factors of what the head of a metanet reads (each of its 14
features, and all of what the graph says), and one of its updates. CMA-ES (Optuna) draws
their logarithms; a trial trains every problem once, and scores by how much lower the
log of its validation loss is than with the weights it began with, on the same seeds,
which every generation has of its own. Every trial is kept in the folder's journal; the
same command goes on, also in several shells at a time. At the end the mean of the
better trials of the last generations is tried beside the beginning on seeds of their
own, and written to `<folder>/best.safetensors`.
"""

from __future__ import annotations

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
from harness.tables import align
from meta_train.problems import load_problem
from meta_train.selection.search import check_fashion
from meta_train.selection.studies import claim, open_study, write_trials
from meta_train.selection.sweep import Scale, scaled
from meta_train.training.rules import trained_metanet
from meta_train.training.unroll import Optimizee, whole_run
from ngopt.metanets import METANETS, FeedForward, GraphMetanet
from ngopt.metanets.features import DECAYS
from ngopt.metanets.imported import find_metanet
from ngopt.pretrained import load_pretrained, save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

COLUMNS = ("weight", "gradient", *(f"momentum {decay:g}" for decay in DECAYS))
FEATURES = (*(f"log {name}" for name in COLUMNS), *(f"sign {name}" for name in COLUMNS))
GRAPH, UPDATE = "graph", "update"
# Logarithms of factors are within these; CMA-ES begins with a deviation of a third.
LIMIT = 0.75
# Settings on which no trial depends.
NO_MATTER = "trials", "folder", "checks"
LEAST = 4  # trials of a generation of CMA-ES
WORST = -10.0  # the score of a trial that diverged


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
        if self.population < LEAST:
            raise ValueError(
                f"population: expected at least {LEAST}; got {self.population}"
            )
        check_fashion(self.problems)


def loaded(config: Config) -> LearnedOptimizer:
    """The weights that are reweighed, whose metanet may be your own."""
    if config.metanet is not None:
        find_metanet(config.metanet, METANETS, may_import=True)
    return load_pretrained(config.weights)


def reweighed(
    learned: LearnedOptimizer, logarithms: Mapping[str, float]
) -> LearnedOptimizer:
    """The same with factors of what the head reads and of its updates, given as
    logarithms."""
    metanet = trained_metanet(learned)
    copy = metanet.reconfigured()
    assert isinstance(copy, FeedForward | GraphMetanet)
    factors = [exp(logarithms[name]) for name in FEATURES]
    factors += [exp(logarithms.get(GRAPH, 0.0))] * metanet.d_context
    first = next(copy.head.parameters())
    with torch.no_grad():
        first.mul_(first.new_tensor(factors))
    return scaled(replace(learned, metanet=copy), Scale(exp(logarithms[UPDATE])))


def names_of(learned: LearnedOptimizer) -> tuple[str, ...]:
    """Of all factors."""
    sees_graph = trained_metanet(learned).d_context > 0
    return (*FEATURES, GRAPH, UPDATE) if sees_graph else (*FEATURES, UPDATE)


class Trainings:
    """Whole trainings of a search's problems."""

    def __init__(self, config: Config):
        self.config = config
        self.problems = [load_problem(name) for name in config.problems]

    def losses(self, learned: LearnedOptimizer, *key: int) -> list[float]:
        """Validation losses, one a problem. key: of the seed."""
        seed = derive_seed(self.config.seed, 30, *key)
        optimizees = [Optimizee(problem, seed) for problem in self.problems]
        return [whole_run(one, learned, self.config.steps).loss for one in optimizees]


def gain(losses: Sequence[float], references: Sequence[float]) -> float:
    """How much lower the logarithms of losses are in the mean; `WORST` if any diverged."""
    if not all(map(isfinite, losses)):
        return WORST
    rows = zip(losses, references, strict=True)
    return fmean(log(reference / loss) for loss, reference in rows)


def search(config: Config) -> optuna.Study:
    """Makes the trials that are missing; the study with all of them."""
    folder, learned = Path(config.folder), loaded(config)
    names, trainings = names_of(learned), Trainings(config)
    study = open_study(folder, "reweigh", named_settings(config, NO_MATTER))
    if not study.trials:
        study.enqueue_trial(dict.fromkeys(names, 0.0))

    def sampler(number: int) -> CmaEsSampler:
        return CmaEsSampler(popsize=config.population, seed=config.seed + number)

    while claimed := claim(study, folder, config.trials, sampler):
        trial, lock = claimed
        with lock:
            asked = {name: trial.suggest_float(name, -LIMIT, LIMIT) for name in names}
            generation = trial.number // config.population
            references = _references(study, trainings, learned, generation)
            losses = trainings.losses(reweighed(learned, asked), 0, generation)
            value = gain(losses, references)
            trial.set_user_attr("losses", losses)
            study.tell(trial, value)
            print(f"trial {trial.number}: {value:+.4f}")
    return study


def _references(
    study: optuna.Study,
    trainings: Trainings,
    learned: LearnedOptimizer,
    generation: int,
) -> list[float]:
    """Losses with the weights that the search began with, on a generation's seeds."""
    key = f"references-{generation}"
    known = study.user_attrs.get(key)
    if known is None:
        known = trainings.losses(learned, 0, generation)
        study.set_user_attr(key, known)
    return known


def centre(trials: Sequence[FrozenTrial], population: int) -> dict[str, float]:
    """Mean numbers of the better half of the last two generations."""
    last = sorted(trials, key=lambda trial: trial.number)[-2 * population :]
    last.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    better = last[: (len(last) + 1) // 2]
    return {name: fmean(t.params[name] for t in better) for name in better[0].params}


def write_best(config: Config, study: optuna.Study) -> LearnedOptimizer:
    """Writes `trials.json` and the end, whose table has its gains over the beginning on
    other seeds."""
    folder, learned = Path(config.folder), loaded(config)
    write_trials(folder, study)
    done = study.get_trials(states=(TrialState.COMPLETE,))
    logarithms = centre(done, config.population)
    found, trainings = reweighed(learned, logarithms), Trainings(config)
    rows: list[dict[str, Any]] = []
    for number in range(config.checks):
        before, after = (trainings.losses(one, 1, number) for one in (learned, found))
        rows.append({"before": before, "after": after, "gain": gain(after, before)})
    stage = {
        "program": "meta_train.selection.reweigh",
        **asdict(config),
        "chosen": logarithms,
    }
    recipe = {"stages": [*learned.recipe["stages"], stage]}
    best = replace(found, recipe=recipe, table={"validation": rows})
    save_pretrained(best, folder / "best.safetensors")
    return best


def run(config: Config) -> None:
    study = search(config)
    best = write_best(config, study)
    path = Path(config.folder, "best.safetensors")
    chosen = best.recipe["stages"][-1]["chosen"]
    gains = [row["gain"] for row in best.table["validation"]]
    body = [[name, f"{exp(value):.3f}"] for name, value in chosen.items()]
    print("\n".join(align(["factor of", "chosen"], body)))
    spread = f" +- {stdev(gains):.4f}" if len(gains) > 1 else ""
    print(
        f"\nLog of the validation loss on {len(gains)} other seeds: lower by "
        f"{fmean(gains):.4f}{spread}. Written to {path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
