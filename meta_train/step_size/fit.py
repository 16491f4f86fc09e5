"""Fits the predictor of the step size, and compares it with others on trainings that
are left out.

`python -m meta_train.step_size.fit --folder runs/step_size` reads all files
`outcomes*.jsonl` there, also compressed ones (.gz). It writes
`learned-step.safetensors`, prints a table and writes it to `compare.json`. Features are
cached in `features.jsonl`. Gains are 100 x the fall of log validation loss against the
base rule, means over two seeds; their errors are standard errors over trainings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from harness import cli
from harness.files import write_json
from harness.tables import text_table
from meta_train.step_size.outcomes import GROUPS, Data, gains_at, read_data
from meta_train.training.round_weights import round_mantissa
from ngopt.learned_step.features import FEATURES, LOG_STEPS
from ngopt.learned_step.predictor import (
    MAX_LOG2,
    NEGLIGIBLE,
    LearnedStep,
    StepPredictor,
)
from ngopt.pretrained import save_pretrained
from ngopt.soap.soap import Soap

FOLDS = 10
SHORT, LONG = 400, 1000  # steps: at most, at least
LIMITS = 2, 5, 15  # percent
SEVERE, MAX_SEVERE = 15, 0.003  # a loss in percent, and the share that may have it
CAUTIONS = 0.5, 1.0, 1.5
REACHES = 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, math.inf
LOSS_WEIGHT = 4.0  # a loss counts as much as a gain of this many times its size
LEARNING_RATE, LAST_SHARE = 0.02, 0.02  # of Adam; it decays to this share
LEAST_SCALE = 1e-2  # of features that hardly vary
POINT_BITS = 8  # of mantissa, of the points: a smaller file in a zipped wheel

Row = dict[str, float | str]


@dataclass(frozen=True)
class Config:
    """Options of the command line. folder: of the outcomes."""

    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    print(f"{len(data.steps)} trainings of {len(set(data.kinds))} kinds", flush=True)
    splits = folds(np.arange(len(data.steps))), folds(data.kinds), data.groups
    left_out = [fitted_without(data, Settings(), parts) for parts in splits]
    limits = best_limits(data, left_out)
    left_out = [x.changed(**limits) for x in left_out]
    gains = left_out[0].gains(data)
    predictor = trusting(fitted(data, replace(Settings(), **limits)), data, gains)
    stage = {"program": "meta_train.step_size.fit", "trainings": len(data.steps)}
    multiplier = LearnedStep(predictor, {"stages": [stage]})
    path = folder / "learned-step.safetensors"
    save_pretrained(Soap(multiplier=multiplier), path)
    print(f"written: '{path}'", flush=True)
    rows = compared(data, *left_out)
    print(text_table([formatted(row) for row in rows]))
    write_json(folder / "compare.json", {"trainings": len(data.steps), "rows": rows})


@dataclass(frozen=True)
class Settings:
    """How a predictor is fitted.

    caution, reach: see `StepPredictor`. penalty: of squared weights. points: number of
    typical trainings.
    """

    width: int = 16
    caution: tuple[float, float] = (1.0, 1.0)
    reach: float = math.inf
    members: int = 16
    penalty: float = 1e-3
    steps: int = 300
    points: int = 512


def utility(gains: Tensor) -> Tensor:
    """Gains, with losses weighted more."""
    return torch.where(gains < 0, LOSS_WEIGHT * gains, gains)


def fitted(data: Data, settings: Settings) -> StepPredictor:
    """A predictor of the trainings of `data`, which trusts all of them.

    Each is two examples: one seed with names of parameters, one without.
    """
    x = torch.tensor(data.x[:, [0, 1], [0, 1]]).flatten(0, 1)
    mean, scale = x.mean(0), x.std(0).clamp(min=LEAST_SCALE)
    gains = torch.tensor(data.gains.mean(2).repeat(2, 0))
    weights = bootstrapped(data.kinds.repeat(2), settings.members)
    inputs = ((x - mean) / scale).float()
    weights = weights * x.any(1)  # without matrices nothing is predicted
    points = min(settings.points, len(data.kinds))
    generator = torch.Generator().manual_seed(0)
    members, width, bound = settings.members, settings.width, x.shape[1] ** -0.5
    hidden = torch.rand(members, x.shape[1], width, generator=generator)
    hidden_bias = torch.rand(members, 1, width, generator=generator)
    kmeans = KMeans(points, n_init="auto", random_state=0)
    centers = kmeans.fit(inputs.numpy()).cluster_centers_
    predictor = StepPredictor(
        mean,
        scale,
        bound * (2 * hidden - 1),
        bound * (2 * hidden_bias - 1),
        output=torch.zeros(members, width, 2),
        output_bias=torch.zeros(members, 1, 2),
        caution=torch.tensor(settings.caution),
        points=round_mantissa(torch.tensor(centers), POINT_BITS),
        trusted=torch.ones(points),
        reach=torch.tensor(settings.reach),
        longest=x[:, FEATURES.index(LOG_STEPS)].max(),
    )
    return _trained(predictor, inputs, gains.float(), weights, settings)


def trusting(predictor: StepPredictor, data: Data, gains: np.ndarray) -> StepPredictor:
    """Trusts the points near which predictions lowered the loss.

    gains: of predictors that were fitted without each training, (n,).
    """
    x = torch.tensor(data.x).float().flatten(1, 2)  # 2 graphs and 2 seeds
    inputs = (x.flatten(0, 1) - predictor.mean) / predictor.scale
    nearest = torch.cdist(inputs, predictor.points).argmin(1)
    useful = utility(torch.tensor(gains).float())
    sums = torch.zeros(len(predictor.points))
    sums.index_add_(0, nearest, useful.repeat_interleave(x.shape[1]))
    return predictor._replace(trusted=(sums > 0).float())


def _trained(
    predictor: StepPredictor,
    inputs: Tensor,
    gains: Tensor,
    weights: Tensor,
    settings: Settings,
) -> StepPredictor:
    """inputs: (n, d). gains: (n, 4). weights: of examples, (members, n)."""
    names = "hidden", "hidden_bias", "output", "output_bias"
    params = [getattr(predictor, name).requires_grad_() for name in names]
    opt = torch.optim.Adam(params, LEARNING_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, LAST_SHARE, settings.steps)
    repeated = gains.repeat(settings.members, 1)
    for _ in range(settings.steps):
        outputs = predictor.networks(inputs).flatten(0, 1)
        gain = utility(gains_at(outputs, repeated))
        penalty = sum(p.square().sum() for p in params[::2])
        loss = settings.penalty * penalty - (weights.flatten() * gain).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        falling.step()
    values = [x.detach().float() for x in predictor]
    return StepPredictor(*values)


def bootstrapped(kinds: np.ndarray, members: int) -> Tensor:
    """Weights (members, n) of examples, each member with its own kinds; sums are 1.

    So members disagree where kinds of training runs do.
    """
    names, codes = np.unique(kinds, return_inverse=True)
    random = np.random.RandomState(0)
    counts = random.multinomial(len(names), [1 / len(names)] * len(names), members)
    weights = counts[:, codes].astype(float)
    weights /= weights.sum(1, keepdims=True).clip(1e-12)
    return torch.tensor(weights, dtype=torch.float32)


class LeftOut(NamedTuple):
    """Predictors that are fitted without a part of the trainings each.

    parts: the part of each training, its predictor's number, (n,).
    """

    parts: np.ndarray
    predictors: list[StepPredictor]

    def changed(self, **fields: Any) -> "LeftOut":
        """With other values of fields that are not fitted."""
        tensors = {key: torch.as_tensor(value) for key, value in fields.items()}
        return self._replace(
            predictors=[x._replace(**tensors) for x in self.predictors]
        )

    def trusting(self, data: Data, gains: np.ndarray) -> "LeftOut":
        """Each with the trust that the trainings give to which it was fitted.

        gains: see `trusting`, (n,).
        """
        known = [self.parts != number for number in range(len(self.predictors))]
        pairs = zip(self.predictors, known, strict=True)
        predictors = [trusting(x, data.at(part), gains[part]) for x, part in pairs]
        return self._replace(predictors=predictors)

    def gains(self, data: Data) -> np.ndarray:
        """Gains (n,) in percent, each by the predictor that was fitted without it."""
        gains = np.zeros(len(self.parts))
        for number, predictor in enumerate(self.predictors):
            is_left_out = self.parts == number
            gains[is_left_out] = predicted_gains(predictor, data.at(is_left_out))
        return gains


def fitted_without(data: Data, settings: Settings, parts: np.ndarray) -> LeftOut:
    """parts: names or numbers, (n,)."""
    names, numbers = np.unique(parts, return_inverse=True)
    chosen = [data.at(numbers != number) for number in range(len(names))]
    return LeftOut(numbers, [fitted(others, settings) for others in chosen])


def compared(
    data: Data, at_random: LeftOut, of_kinds: LeftOut, of_groups: LeftOut
) -> list[Row]:
    """Rows of models with kinds or trainings left out, and of each group left out."""
    gains = at_random.gains(data)
    predictor = of_kinds.predictors[0]
    one = fitted_without(data, replace(Settings(), members=1), of_kinds.parts)
    models = {
        "no caution": of_kinds.changed(caution=0 * predictor.caution),
        "one network": one.changed(reach=predictor.reach),
        "as written": of_kinds,
        "left out at random": at_random,
    }
    models = {label: x.trusting(data, gains) for label, x in models.items()}
    models["all trusted"] = of_kinds
    rows = [row_of(name, x.gains(data), data.steps) for name, x in models.items()]
    gains = of_groups.trusting(data, gains).gains(data)
    for name in GROUPS:
        part = data.groups == name
        if part.any():
            rows.append(row_of(f"left out: {name}", gains[part], data.steps[part]))
    return rows


def best_limits(data: Data, left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Caution and reach with the best utility for trainings that are left out.

    Limits with more severe losses than `MAX_SEVERE` are chosen if all have more.
    left_out: the first leaves trainings out at random, and measures severe losses.
    """
    totals = {}
    for caution, reach in product(CAUTIONS, REACHES):
        limits = {"caution": (caution, caution), "reach": reach}
        models = [x.changed(**limits) for x in left_out]
        first = models[0].gains(data)
        gains = np.stack([x.trusting(data, first).gains(data) for x in models])
        severe = float((gains[0] < -SEVERE).mean())
        total = float(utility(torch.tensor(gains)).mean())
        totals[caution, reach] = severe <= MAX_SEVERE, total
        print(f"caution {caution}, reach {reach}: {total:.3f}, severe {severe:.4f}")
    caution, reach = max(totals, key=lambda limits: totals[limits])
    return {"caution": (caution, caution), "reach": reach}


def predicted_gains(predictor: StepPredictor, data: Data) -> np.ndarray:
    """Gains (n,) in percent with named parameters, means over seeds."""
    gains = []
    for seed in range(data.x.shape[2]):
        predicted = applied(predictor.predict(torch.tensor(data.x[:, 0, seed]).float()))
        measured = torch.tensor(data.gains[:, :, seed]).float()
        gains.append(gains_at(predicted, measured).numpy())
    return 100 * np.mean(gains, 0)


def applied(predicted: Tensor) -> Tensor:
    """The predictions (n, 2) within the limits of factors."""
    log_factor, slope = predicted.clamp(-MAX_LOG2, MAX_LOG2).unbind(1)
    slope = slope.abs().minimum(MAX_LOG2 - log_factor.abs()) * slope.sign()
    within = torch.stack((log_factor, slope), 1)
    is_negligible = within.abs().sum(1, keepdim=True) <= NEGLIGIBLE
    return torch.where(is_negligible, 0.0, within)


def folds(kinds: np.ndarray, count: int = FOLDS) -> np.ndarray:
    """The fold of each training, (n,); a kind is in one fold."""
    names, codes = np.unique(kinds, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(names))
    return order[codes] % count


def row_of(label: str, gains: np.ndarray, steps: np.ndarray) -> Row:
    """The row of gains in percent, (n,). steps: of the trainings, (n,)."""
    row: Row = {"model": label, "trainings": len(gains)}
    is_short, is_long = steps <= SHORT, steps >= LONG
    parts = {"all": steps > 0, f"<= {SHORT}": is_short, f">= {LONG}": is_long}
    for name, part in parts.items():
        values = gains[part] if part.any() else np.zeros(1)
        row[name] = float(values.mean())
        row[f"{name} error"] = float(values.std() / len(values) ** 0.5)
    for limit in LIMITS:
        row[f"worse by {limit} %"] = 100 * float((gains < -limit).mean())
    row["changed"] = 100 * float((gains != 0).mean())
    return row


def formatted(row: Row) -> dict[str, str]:
    """Cells of the printed table."""
    cells = {}
    for name, value in row.items():
        if name.endswith(" error"):
            continue
        cells[name] = value if isinstance(value, str) else f"{value:.1f}"
        if f"{name} error" in row:
            cells[name] = f"{value:.1f} +- {row[f'{name} error']:.1f}"
    return cells


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
