"""Contrastive representations of networks:
`python -m tasks.represent --data data/inr-sines --folder runs/r`.

Trains a model with the loss of SimCLR between two noisy copies of each network (Navon
et al. 2023, section 7.2). Its representations are evaluated by linear regression: of
amplitude and frequency of sine waves (mean squared error, both from 0 to 10), or of the
class of images. Writes what `tasks.classify` writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from harness import cli
from harness.settings import check_counts, check_setting
from tasks.learning.sirens import read_sirens
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.networks.architectures import NetworkStack

# Training networks of the linear regression at a validation; after training, it has all
# of them.
VALIDATION_FIT = 1000
# Ridge penalty per network.
RIDGE = 1e-4
WAVE = ("amplitude", "frequency")


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a representation task."""

    dimension: int = 64
    """Size of a representation."""
    noise: float = 0.1
    """Noise of a copy, in standard deviations of each parameter over the training
    data."""
    masked: float = 0.1
    """Share of the parameters of a copy that are replaced by their means."""
    temperature: float = 0.1
    """Divides the similarities of representations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "dimension")
        temperature, noise, masked = self.temperature, self.noise, self.masked
        check_setting(temperature > 0, "temperature", "more than 0", temperature)
        check_setting(noise >= 0, "noise", "0 or more", noise)
        check_setting(0 <= masked < 1, "masked", "0 to less than 1", masked)
        batch = self.training.batch
        check_setting(batch >= 2, "batch", "2 or more for a contrastive loss", batch)


class Representation(NetworkTask[Config]):
    """The loss contrasts noisy copies; the score is the accuracy, or negative error, of
    a linear regression."""

    def build(self, config: Config) -> None:
        data = read_sirens(config.data)
        self.stacks = {split: data[split].stack for split in data}
        self.targets = {
            split: regression_targets(data[split].columns) for split in data
        }
        self.targets["train"] = self.targets["train"][: config.limit]
        train = self.stacks["train"] = self.stacks["train"].select(slice(config.limit))
        self.means = [value.mean(0) for value in train.params]
        self.deviations = [value.std(0) for value in train.params]
        self.model = self.make_model([train], config.dimension)

    def loss(self, step: int) -> Tensor:
        train = self.stacks["train"]
        stack = train.select(self.batch(train.count, step))
        first, second = self.representations(stack), self.representations(stack)
        return contrastive_loss(first, second, self.config.temperature)

    def representations(self, stack: NetworkStack) -> Tensor:
        """Representations of noisy copies in training, of length 1, (b, dimension)."""
        copies = self.prepared(self.noisy_copy(stack))
        return normalize(self.training_outputs(copies), dim=-1)

    def noisy_copy(self, stack: NetworkStack) -> NetworkStack:
        """Networks with noise, a share of their parameters replaced by the means."""
        params = []
        statistics = zip(stack.params, self.means, self.deviations, strict=True)
        for value, mean, deviation in statistics:
            noisy = value + self.config.noise * deviation * torch.randn_like(value)
            is_masked = torch.rand_like(value) < self.config.masked
            params.append(torch.where(is_masked, mean, noisy))
        return stack._replace(params=params)

    def score(self) -> float:
        results = self.regression("validation", slice(VALIDATION_FIT))
        return results.get("accuracy", -results.get("mse", 0.0))

    def results(self) -> Mapping[str, float]:
        return self.regression("test", slice(None))

    def regression(self, split: str, fitted: slice) -> dict[str, float]:
        """Evaluates a linear regression on a split. fitted: the training networks to
        which it is fitted."""
        train_inputs = self.regression_inputs(self.stacks["train"].select(fitted))
        inputs = self.regression_inputs(self.stacks[split])
        weights = ridge_regression(train_inputs, self.targets["train"][fitted])
        predicted = inputs @ weights
        targets = self.targets[split]
        if targets.shape[1] == len(WAVE):
            return {"mse": (predicted - targets).square().mean().item()}
        is_right = predicted.argmax(1) == targets.argmax(1)
        return {"accuracy": is_right.double().mean().item()}

    def regression_inputs(self, stack: NetworkStack) -> Tensor:
        """Representations of length 1, and a constant 1; (n, dimension + 1) float64."""
        outputs = torch.cat(list(map(self.eval_outputs, stack.split(EVALUATION_BATCH))))
        ones = torch.ones(stack.count, 1)
        return torch.cat([normalize(outputs, dim=-1), ones], 1).double()


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the other copy of each network among all copies (Chen et al.
    2020, Eq. 1).

    Shapes: (b, d) each, of length 1.
    """
    count = len(first)
    copies = torch.cat([first, second])
    logits = copies @ copies.mT / temperature
    logits.fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(2 * count).roll(count))


def ridge_regression(inputs: Tensor, targets: Tensor) -> Tensor:
    """Weights: (n, d), (n, k) -> (d, k)."""
    square = inputs.mT @ inputs
    ridge = RIDGE * len(inputs) * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square + ridge, inputs.mT @ targets)


def regression_targets(columns: Mapping[str, Tensor]) -> Tensor:
    """Amplitude and frequency, or one-hot classes, (n, k) float64. Raises ValueError if
    networks have neither."""
    if all(name in columns for name in WAVE):
        return torch.stack([columns[name] for name in WAVE], 1).double()
    if "label" in columns:
        return one_hot(columns["label"].long()).double()
    raise ValueError(
        f"networks: expected columns {', '.join(WAVE)}, or label; "
        f"got {', '.join(columns)}"
    )


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Representation), __doc__)
