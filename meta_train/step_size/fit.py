"""Fits the predictor of the step size to measured trainings.

`python -m meta_train.step_size.fit --folder runs/step_size` writes
`learned-step.safetensors` there: weights of the default's rule and the predictor.
"""

from pathlib import Path

import torch
from torch import Tensor

from harness import cli
from meta_train.step_size.compare import Config, gains_at, predicted
from meta_train.step_size.dataset import EXAMPLES, Data, read_data, read_slopes
from meta_train.step_size.feature_sets import CHOSEN
from meta_train.step_size.models import (
    DEFAULT,
    OF_SLOPES,
    Ensemble,
    Predictor,
    Settings,
)
from ngopt.learned_step.predictor import LearnedStep, StepPredictor
from ngopt.pretrained import save_pretrained
from ngopt.soap.soap import Soap


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    slopes = read_slopes(folder, data)
    if slopes is None:
        raise ValueError(
            f"folder: expected slopes*.jsonl* in '{folder}'; got none. "
            f"Run meta_train.step_size.collect_slopes first."
        )
    factor, examples = fitted(data, DEFAULT)
    slope, of_slopes = fitted(slopes.data, OF_SLOPES)
    stage = {
        "program": "python -m meta_train.step_size.fit",
        "trainings": examples,
        "trainings_of_slopes": of_slopes,
    }
    predictor = StepPredictor.of(tensors_of(factor, slope))
    rule = Soap(multiplier=LearnedStep(predictor, {"stages": [stage]}))
    path = folder / "learned-step.safetensors"
    save_pretrained(rule, path)
    print(f"written: '{path}'")


def fitted(data: Data, settings: Settings) -> tuple[Predictor, int]:
    """A predictor, and the number of trainings that it is fitted to."""
    x, gains, kinds = data.examples(CHOSEN)
    model = Ensemble(data.log_multipliers, settings)
    model.fit(x, gains, kinds)
    assert model.predictor is not None
    gain = gains_at(predicted(model, data.columns(CHOSEN)), data).mean()
    print(f"{len(data.steps)} trainings, gain {gain:.1f} % on them")
    return model.predictor, len(kinds) // EXAMPLES


def tensors_of(factor: Predictor, slope: Predictor) -> dict[str, Tensor]:
    """The fields of `StepPredictor`."""
    heads = []
    for predictor in (factor, slope):
        (hidden, hidden_bias), (output, output_bias) = predictor.layers
        layers = hidden, hidden_bias, output, output_bias
        heads.append([*predictor.scaling, *layers, torch.tensor(predictor.caution)])
    found = {}
    for key, both in zip(StepPredictor._fields, zip(*heads, strict=True), strict=True):
        found[key] = torch.stack(both).float()
    return found


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
