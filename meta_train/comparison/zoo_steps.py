"""Counts steps of SIRENs to a PSNR: `python -m meta_train.comparison.zoo_steps`.

Images and networks are those of `tasks.inr fit`. PSNR is in dB for pixels from 0 to 1,
the mean over images. Plain training and Adam at a constant rate are trained once: the
first step counts. With total_steps, and with Adam's warm-up and line to zero, every
number of steps is a training. Adam has the best learning rate and beta1 in each cell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import cli
from harness.files import make_folder, write_json
from harness.tables import markdown_table, text_table
from meta_train.comparison.exact_fits import BETA1S, LRS, train_default
from meta_train.comparison.stacked_adam import constant_factor, train_copies
from meta_train.problems import exact
from meta_train.problems.supervised import on_itself
from tasks.networks.siren import Siren
from tasks.shards import SPLITS
from tasks.sources.signals import load_signals

LEVELS = 40, 60, 80  # dB
COUNTS = 50, 70, 100, 140, 200, 280, 400, 560, 800, 1100, 1600  # steps
SETTINGS = [(lr, beta1) for beta1, lr in product(BETA1S, LRS[1:7])]


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("mnist", "fashion-mnist")
    images: int = 8
    """The first training images; their indices are the seeds of the weights."""
    folder: str = "results/exact_fits"


def signal_fits(data: str, count: int) -> Iterator[Any]:
    """Problems of fitting the first training signals."""
    signals = load_signals(data, dict.fromkeys(SPLITS, count), seed=0)["train"]
    widths = signals.points.shape[1], 32, 32, 1
    for values in signals.values(torch.arange(count)):
        splits = on_itself(signals.points, values.mT)
        yield exact.fit(partial(lambda s: s, splits), Siren, widths)


def default(problem: Any, seed: int, steps: int, scheduled: bool) -> Tensor:
    """Losses (steps + 1, 1) of raw weights."""
    return torch.tensor(train_default(problem, seed, steps, scheduled)[-1])[:, None]


adam = partial(train_copies, settings=SETTINGS)
METHODS = {  # how it is trained, and whether every number of steps is a training
    "plain": (partial(default, scheduled=False), False),
    "total_steps": (partial(default, scheduled=True), True),
    "Adam, constant": (partial(adam, factor=constant_factor), False),
    "Adam, line to 0": (adam, True),
}


def psnr_by_steps(name: str, problems: Sequence[Any]) -> dict[int, Tensor]:
    """PSNR (settings,) by number of steps, up to the first at the highest level."""
    train, is_each = METHODS[name]
    psnr: dict[int, Tensor] = {}
    for steps in COUNTS if is_each else COUNTS[-1:]:
        losses = [train(x, seed, steps=steps) for seed, x in enumerate(problems)]
        means = -10 * torch.stack(losses).log10().mean(0)
        psnr |= {steps: means[-1]} if is_each else dict(enumerate(means))
        if (means[-1] >= LEVELS[-1]).any():
            break
    return psnr


def first_steps(psnr: dict[int, Tensor]) -> dict[int, tuple[int, int] | None]:
    """By level: the steps, and the index of the best setting; None: not reached."""
    first: dict[int, tuple[int, int] | None] = dict.fromkeys(LEVELS)
    for level, (steps, values) in product(LEVELS, psnr.items()):
        if first[level] is None and (values >= level).any():
            first[level] = steps, int(values.nan_to_num(-torch.inf).argmax())
    return first


def run(config: Config) -> None:
    path, stored, rows = Path(config.folder, "zoo_steps.json"), {}, []
    make_folder(path.parent)
    for data in config.data:
        problems = list(signal_fits(data, config.images))
        first = {name: first_steps(psnr_by_steps(name, problems)) for name in METHODS}
        stored[data] = first
        for level in LEVELS:
            cells = {name: str((x[level] or "-")[0]) for name, x in first.items()}
            rows.append({"images": data, "PSNR, dB": str(level), **cells})
    write_json(path, stored)
    path.with_suffix(".md").write_text(markdown_table(rows) + "\n")
    print(text_table(rows))


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
