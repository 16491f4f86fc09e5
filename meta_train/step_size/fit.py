"""Fits the predictor of the step size to measured trainings.

`python -m meta_train.step_size.fit --folder runs/step_size` writes
`learned-step.safetensors` there.
"""

from dataclasses import replace
from pathlib import Path

from harness import cli
from meta_train.step_size.compare import Config, fitted_reach
from meta_train.step_size.models import Settings, fitted
from meta_train.step_size.outcomes import read_data
from ngopt.learned_step.predictor import LearnedStep
from ngopt.pretrained import save_pretrained
from ngopt.soap.soap import Soap


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    settings = replace(Settings(), reach=fitted_reach(data, Settings()))
    stage = {
        "program": "python -m meta_train.step_size.fit",
        "trainings": len(data.trainings),
    }
    multiplier = LearnedStep(fitted(data, settings), {"stages": [stage]})
    path = folder / "learned-step.safetensors"
    save_pretrained(Soap(multiplier=multiplier), path)
    print(f"written: '{path}'")


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
