"""Fits the predictor of the step size to measured trainings.

`python -m meta_train.step_size.fit --folder runs/step_size` writes
`learned-step.safetensors` there: weights of the default's rule and the predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import cli
from harness.settings import check_counts
from meta_train.step_size.compare import EXAMPLES, gains_at, predicted, read_data
from meta_train.step_size.feature_sets import CHOSEN
from meta_train.step_size.models import Ensemble, Predictor
from ngopt.base.soap import Soap
from ngopt.base.step_predictor import StepPredictor
from ngopt.pretrained import LearnedOptimizer, load_pretrained, save_pretrained


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    files: how many are fitted to, in the order of their names; None for all.
    """

    folder: str = "runs/step_size"
    files: int | None = None


def main(config: Config) -> None:
    check_counts(config, "files")
    folder = Path(config.folder)
    data = read_data(folder)
    is_fitted = data.files < (config.files or np.inf)
    examples = data.examples(CHOSEN, is_fitted)
    model = Ensemble(data.log_multipliers)
    model.fit(*examples)
    predictor = model.predictor
    assert predictor is not None
    places = predicted(model, data.columns(CHOSEN))
    gain = gains_at(places, data)[is_fitted].mean()
    _, _, kinds = examples
    stage = {
        "program": "python -m meta_train.step_size.fit",
        "trainings": len(kinds) // EXAMPLES,
        "kinds": len(set(kinds)),
    }
    base = load_pretrained().base
    assert isinstance(base, Soap)
    learned = LearnedOptimizer(
        base=base.with_tensors(tensors_of(predictor)), recipe={"stages": [stage]}
    )
    path = folder / "learned-step.safetensors"
    save_pretrained(learned, path)
    print(f"'{path}': {is_fitted.sum()} trainings, gain {gain:.1f} % on them")


def tensors_of(predictor: Predictor) -> dict[str, Tensor]:
    """The fields of `StepPredictor`."""
    (hidden, hidden_bias), (output, output_bias) = predictor.layers
    own = StepPredictor(
        *predictor.scaling,
        hidden,
        hidden_bias,
        output,
        output_bias,
        torch.tensor(predictor.caution),
    )
    return {key: x.float() for key, x in own._asdict().items()}


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
