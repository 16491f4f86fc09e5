"""Tunes the hyperparameters of meta-training, as in the paper:
`python -m meta_train.selection.search --metanet ng-gnn`.

A trial (Optuna, TPE) draws sizes of the metanet, outer learning rate, weight decay and
number of outer steps. It meta-trains, chooses the output gain over whole runs, and is
scored by validation accuracy on FashionMNIST; other data are never used. Every trial is
kept in the folder's journal, with its weights in `trial-N/`. The same command resumes,
also in several shells at a time; a trial whose process has ended does not count. The
best weights are written to `best.safetensors`, all trials to `trials.json`.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from harness import cli
from harness.errors import Interrupted
from harness.settings import check_counts, named_settings
from harness.tables import text_table
from meta_train.selection import sweep
from meta_train.selection.study import run_study
from meta_train.training import train
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet

# Choices of a trial, of the sizes that the metanet has.
WIDTHS = (16, 24, 32, 48, 64)
LAYERS = (1, 2, 3, 4)
OUTPUTS = (4, 8, 16)
HIDDEN = (16, 32, 64)
LRS, WEIGHT_DECAYS = (3e-5, 1e-3), (1e-6, 1e-2)
# In the names of problems with FashionMNIST: "fm" and, in some, the side of the images.
FASHION = re.compile(r"(^|-)fm\d*(-|$)")
LEAST_OUTER_STEPS = 10
# Settings of every trial's meta-training.
PASSED_ON = (
    "metanet init_from problems estimator horizon truncation tail optimizees autocast "
    "seed"
).split()
# Settings that change no trial.
IRRELEVANT = "trials", "folder"


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
    """Inner steps of a run, also of those that choose the gain and score a trial."""
    truncation: int = 500
    tail: float = 1.0
    """`truncation` and `tail` as in `meta_train.training.train`."""
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
    """Raises ValueError for problems of other data than FashionMNIST."""
    others = [name for name in problems if ":" not in name and not FASHION.search(name)]
    if others:
        raise ValueError(
            "problems: expected those of FashionMNIST, which alone chooses; "
            f"got {others}"
        )


def suggested(trial: optuna.Trial, config: Config) -> train.Config:
    """The settings of a trial's meta-training."""
    known = vars(find_metanet(config.metanet, METANETS, may_import=True).Config())
    sizes = dict(config.metanet_config)
    for key, choices in (("width", WIDTHS), ("layers", LAYERS), ("d_out", OUTPUTS)):
        if key in known and key not in sizes:
            sizes[key] = trial.suggest_categorical(key, choices)
    if config.init_from is None and "hidden" not in sizes:
        sizes["hidden"] = trial.suggest_categorical("hidden", HIDDEN)
    return train.Config(
        folder=str(Path(config.folder, f"trial-{trial.number}")),
        outer_steps=trial.suggest_int(
            "outer_steps", LEAST_OUTER_STEPS, config.most_outer_steps, log=True
        ),
        lr=trial.suggest_float("lr", *LRS, log=True),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAYS, log=True),
        warmup=5,
        validate_every=10,
        metanet_config=sizes,
        **{name: getattr(config, name) for name in PASSED_ON},
    )


def train_and_score(
    settings: train.Config, config: Config
) -> tuple[float, float | None]:
    """Validation accuracy of a trial's weights, and their output gain.

    (0, None) if all diverged.
    """
    train.run(settings)
    weights = Path(settings.folder, "best.safetensors")
    if not weights.exists():
        return 0.0, None
    sweep_config = sweep.Config(
        weights=str(weights),
        output=str(Path(settings.folder, "gain.safetensors")),
        problems=config.problems[:1],
        gains=config.gains,
        cooldowns=config.cooldowns,
        seeds=config.gain_seeds,
        steps=settings.horizon,
        autocast=config.autocast,
        seed=config.seed,
    )
    best, means = sweep.search(sweep_config)
    return sweep.score(means[best]), best.gain


def search(config: Config) -> optuna.Study:
    """Runs the missing trials. Returns the study with all of them."""

    def sampler(number: int) -> TPESampler:
        # a seed for every trial, also after resuming
        return TPESampler(seed=config.seed + number, constant_liar=True)

    def objective(trial: optuna.Trial) -> float:
        score, gain = train_and_score(suggested(trial, config), config)
        trial.set_user_attr("gain", gain)
        return score

    settings = named_settings(config, IRRELEVANT)
    folder = Path(config.folder)
    return run_study(
        folder, config.metanet, settings, config.trials, sampler, objective
    )


def _cells(trial: FrozenTrial) -> dict[str, str]:
    gain, numbers = trial.user_attrs["gain"], trial.params.items()
    return {
        "trial": str(trial.number),
        "validation accuracy %": f"{100 * (trial.value or 0):.2f}",
        "gain": "diverged" if gain is None else f"{gain:g}",
        "numbers": ", ".join(f"{key} {number:.3g}" for key, number in numbers),
    }


def run(config: Config) -> None:
    try:
        study = search(config)
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished trials are in '{config.folder}'; the same command with "
            f"--folder {config.folder} begins the interrupted one anew"
        ) from None
    folder = Path(config.folder)
    best = folder / f"trial-{study.best_trial.number}" / "gain.safetensors"
    path = shutil.copyfile(best, folder / "best.safetensors")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    print(text_table([_cells(trial) for trial in complete]))
    print(
        f"\nBest: trial {study.best_trial.number}, {100 * study.best_value:.2f} %. "
        f"Written to {path}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
