"""Chooses how an optimizer is meta-trained, as the paper did:
`python -m meta_train.selection.search --metanet ng-gnn`.

A trial (Optuna, TPE) meta-trains with sizes of the metanet, outer learning rate, weight
decay and number of outer steps of its own, chooses the output gain over whole runs, and
scores by validation accuracy on FashionMNIST, which alone chooses. Every trial is kept
in the folder's journal, with its weights in `trial-N/`; the same command goes on, also
in several shells at a time, and gives up a trial whose process has ended. The best
weights are written to `best.safetensors`, all trials to `trials.json`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from harness import cli
from harness.interrupts import Interrupted
from harness.settings import check_counts, named_settings
from harness.tables import align
from meta_train.selection import sweep
from meta_train.selection.studies import claim, open_study, write_trials
from meta_train.training import train
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet

# What may be chosen, of what each metanet has; the outer steps are those of the last
# stage.
WIDTHS, LAYERS, OUTPUTS = (16, 24, 32, 48, 64), (1, 2, 3, 4), (4, 8, 16)
HIDDEN = (16, 32, 64)
LRS, WEIGHT_DECAYS = (3e-5, 1e-3), (1e-6, 1e-2)
# What names of problems have whose data is FashionMNIST, which alone chooses: "fm", and
# perhaps the side of the images.
FASHION = re.compile(r"(^|-)fm\d*(-|$)")
LEAST_OUTER_STEPS = 10
# Settings on which no trial depends.
NO_MATTER = "trials", "folder"
HEADER = ["trial", "validation accuracy %", "gain", "numbers"]


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    metanet: str = "ng-gnn"
    """Name of the metanet to train, or module:Class of your own."""
    init_from: str | None = "ff"
    """Weights to start from; the widths of its MLP then stay as they are."""
    problems: tuple[str, ...] = ("fm-16", "fm-8", "fm-8")
    """What is trained on, all of FashionMNIST or your own; validation is on the first.
    """
    estimator: str = "tbptt"
    horizon: int = 1000
    """Inner steps of a training, also of those that choose the gain and score a trial.
    """
    truncation: int = 500
    tail: float = 1.0
    """These as in `meta_train.training.train`."""
    optimizees: int = 2
    most_outer_steps: int = 80
    gains: tuple[float, ...] = (0.7, 1.0, 1.4, 2.0)
    gain_seeds: int = 3
    cooldowns: tuple[float, ...] = ()
    """As in `meta_train.selection.sweep`."""
    metanet_config: dict[str, float] = field(default_factory=dict)
    """Numbers of the metanet's config that no trial chooses, such as graph_every 8."""
    trials: int = 20
    """Trials in all, those of earlier and other calls included."""
    folder: str = "runs/search"
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fashion(self.problems)
        check_counts(
            self, "horizon", "truncation", "optimizees", "gain_seeds", "trials"
        )
        if self.most_outer_steps < LEAST_OUTER_STEPS:
            raise ValueError(
                f"most_outer_steps: expected {LEAST_OUTER_STEPS} or more; got "
                f"{self.most_outer_steps}"
            )


def check_fashion(problems: Sequence[str]) -> None:
    """Raises ValueError for problems of other data than FashionMNIST, which alone
    chooses."""
    odd = [name for name in problems if ":" not in name and not FASHION.search(name)]
    if odd:
        raise ValueError(
            f"problems: expected those of FashionMNIST, which alone chooses; got {odd}"
        )


def suggested(trial: optuna.Trial, config: Config) -> train.Config:
    """How a trial meta-trains."""
    known = vars(find_metanet(config.metanet, METANETS, may_import=True).Config())
    sizes = dict(config.metanet_config)
    for key, choices in (("width", WIDTHS), ("layers", LAYERS), ("d_out", OUTPUTS)):
        if key in known and key not in sizes:
            sizes[key] = trial.suggest_categorical(key, choices)
    if config.init_from is None and "hidden" not in sizes:
        sizes["hidden"] = trial.suggest_categorical("hidden", HIDDEN)
    return train.Config(
        folder=str(Path(config.folder, f"trial-{trial.number}")),
        metanet=config.metanet,
        init_from=config.init_from,
        problems=config.problems,
        estimator=config.estimator,
        horizon=config.horizon,
        truncation=config.truncation,
        tail=config.tail,
        optimizees=config.optimizees,
        outer_steps=trial.suggest_int(
            "outer_steps", LEAST_OUTER_STEPS, config.most_outer_steps, log=True
        ),
        lr=trial.suggest_float("lr", *LRS, log=True),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAYS, log=True),
        warmup=5,
        validate_every=10,
        metanet_config=sizes,
        autocast=config.autocast,
        seed=config.seed,
    )


def measured(settings: train.Config, config: Config) -> tuple[float, float | None]:
    """Validation accuracy of what a trial makes, and its output gain; 0 if all
    diverged."""
    train.run(settings)
    folder = Path(settings.folder)
    if not (folder / "best.safetensors").exists():
        return 0.0, None
    found = sweep.search(
        sweep.Config(
            weights=str(folder / "best.safetensors"),
            output=str(folder / "gain.safetensors"),
            problems=config.problems[:1],
            gains=config.gains,
            cooldowns=config.cooldowns,
            seeds=config.gain_seeds,
            steps=settings.horizon,
            autocast=config.autocast,
            seed=config.seed,
        )
    )
    return sweep.score(found.best), found.chosen.gain


def search(config: Config) -> optuna.Study:
    """Makes the trials that are missing; the study with all of them."""
    folder = Path(config.folder)
    settings = named_settings(config, NO_MATTER)
    study = open_study(folder, config.metanet, settings)

    def sampler(number: int) -> TPESampler:
        # of its own for every trial, also after resuming
        return TPESampler(seed=config.seed + number, constant_liar=True)

    while claimed := claim(study, folder, config.trials, sampler):
        trial, lock = claimed
        with lock:
            value, gain = measured(suggested(trial, config), config)
            trial.set_user_attr("gain", gain)
            study.tell(trial, value)
    return study


def write_best(config: Config, study: optuna.Study) -> Path:
    """Writes the best trial's weights, and `trials.json`, a line for every trial."""
    folder = Path(config.folder)
    write_trials(folder, study)
    path = folder / "best.safetensors"
    shutil.copyfile(
        folder / f"trial-{study.best_trial.number}" / "gain.safetensors", path
    )
    return path


def _cells(trial: Any) -> list[str]:
    gain = trial.user_attrs["gain"]
    shown = "diverged" if gain is None else f"{gain:g}"
    return [str(trial.number), f"{100 * trial.value:.2f}", shown, _text(trial.params)]


def _text(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {number:.3g}" for key, number in numbers.items())


def run(config: Config) -> None:
    try:
        study = search(config)
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished trials are in '{config.folder}'; the same command with "
            f"--folder {config.folder} begins the interrupted one anew"
        ) from None
    path = write_best(config, study)
    body = [_cells(trial) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    print("\n".join(align(HEADER, body)))
    print(
        f"\nBest: trial {study.best_trial.number}, {100 * study.best_value:.2f} %. Written to "
        f"{path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
