"""Representations without labels:
`python -m tasks.represent --data data/inr-sines --folder runs/r`.

Trains a model so that two damaged copies of a network are told from those of others
(Navon et al. 2023, section 7.2, after SimCLR), and then asks what a linear map of its
representations knows: of sine waves amplitude and frequency (mean squared error, both
from 0 to 10), of images their class. Writes what `tasks.classify` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from harness import cli
from harness.distributed import Ranks
from harness.settings import check_counts
from tasks.learning.image_networks import read_sirens
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.networks.architectures import Stack
from tasks.shards import SPLITS

# Networks from which the linear map is found at a validation; at the end it is all.
FEW = 1000
# Weight of the linear map's squares, for each network that it is found from.
RIDGE = 1e-4
WAVE = ("amplitude", "frequency")


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a representation."""

    dimension: int = 64
    """Numbers that represent a network."""
    noise: float = 0.1
    """Of a copy, in deviations of each parameter over the training data."""
    masked: float = 0.1
    """Share of the parameters that a copy has at their means."""
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "dimension")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature: expected more than 0; got {self.temperature}"
            )
        if self.noise < 0:
            raise ValueError(f"noise: expected 0 or more; got {self.noise}")
        if not 0 <= self.masked < 1:
            raise ValueError(f"masked: expected 0 to less than 1; got {self.masked}")
        if self.training.batch < 2:
            raise ValueError(
                f"batch: expected 2 networks or more to tell apart; got {self.training.batch}"
            )


class Representation(NetworkTask[Config]):
    """Contrast of damaged copies; the score is what a linear map gets right,
    or its negative error."""

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        super().__init__(config, ranks)
        self.stacks: dict[str, Stack] = {}
        self.targets: dict[str, Tensor] = {}
        for split in SPLITS:
            networks = read_sirens(config, split)
            some = slice(config.limit if split == "train" else None)
            self.stacks[split] = Stack.of(networks).select(some)
            self.targets[split] = targets_of(networks.columns)[some]
        train = self.stacks["train"]
        self.means = [value.mean(0) for value in train.params]
        self.deviations = [value.std(0) for value in train.params]
        self.model = self.make_model([train], config.dimension)

    def loss(self, step: int) -> Tensor:
        train = self.stacks["train"]
        stack = train.select(self.batch(train.count, step))
        copies = (self.prepared(self.damaged(stack)) for _ in range(2))
        first, second = (
            normalize(self.training_outputs(copy), dim=-1) for copy in copies
        )
        return contrast(first, second, self.config.temperature)

    def damaged(self, stack: Stack) -> Stack:
        """A copy with noise, and some parameters at their means."""
        config, params = self.config, []
        for value, mean, deviation in zip(
            stack.params, self.means, self.deviations, strict=True
        ):
            noisy = value + config.noise * deviation * torch.randn_like(value)
            is_masked = torch.rand_like(value) < config.masked
            params.append(torch.where(is_masked, mean, noisy))
        return stack._replace(params=params)

    def represented(self, stack: Stack) -> Tensor:
        """(b, dimension), of length 1 each."""
        return normalize(self.eval_outputs(stack), dim=-1)

    def score(self) -> float:
        found = self.read_out("validation", slice(FEW))
        return found.get("accuracy", -found.get("mse", 0.0))

    def results(self) -> Mapping[str, float]:
        return self.read_out("test", slice(None))

    def read_out(self, split: str, some: slice) -> dict[str, float]:
        """What the best linear map of the representations of some training networks
        says of a split."""
        known, asked = (
            self.all_of(self.stacks[name].select(part))
            for name, part in (("train", some), (split, slice(None)))
        )
        targets = self.targets["train"][some]
        truth = self.targets[split]
        said = asked @ linear_map(known, targets)
        if truth.shape[1] == len(WAVE):
            return {"mse": (said - truth).square().mean().item()}
        is_right = said.argmax(1) == truth.argmax(1)
        return {"accuracy": is_right.double().mean().item()}

    def all_of(self, stack: Stack) -> Tensor:
        """Representations with a last 1, (n, dimension + 1)."""
        pieces = torch.arange(stack.count).split(EVALUATION_BATCH)
        found = torch.cat([self.represented(stack.select(piece)) for piece in pieces])
        return torch.cat([found, torch.ones(len(found), 1)], 1).double()


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each copy's partner among all others (Chen et al. 2020,
    Eq. 1).

    Shapes: (b, d) each, of length 1.
    """
    count = len(first)
    both = torch.cat([first, second])
    logits = both @ both.mT / temperature
    logits.fill_diagonal_(-torch.inf)
    partners = torch.arange(2 * count).roll(count)
    return cross_entropy(logits, partners)


def linear_map(known: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression: (n, d), (n, k) -> (d, k)."""
    square = known.mT @ known
    ridge = RIDGE * len(known) * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square + ridge, known.mT @ targets)


def targets_of(columns: Mapping[str, Tensor]) -> Tensor:
    """What is to be known, (n, k) float64: amplitude and frequency, or classes,
    one-hot.

    Raises ValueError if networks have neither.
    """
    if all(name in columns for name in WAVE):
        return torch.stack([columns[name] for name in WAVE], 1).double()
    if "label" in columns:
        return one_hot(columns["label"].long()).double()
    raise ValueError(
        f"networks: expected columns {', '.join(WAVE)}, or label; got {', '.join(columns)}"
    )


def run(config: Config) -> None:
    run_task(config, Representation)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
