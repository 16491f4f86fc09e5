"""Random trainings: a network, a task, initial weights, a batch size and a horizon."""

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.random import derive_seed, seeded
from meta_train.step_size import networks
from meta_train.step_size.networks import ACTIVATIONS, NetworkSettings
from meta_train.step_size.tasks import EXACT, Task, make_task


class Family(NamedTuple):
    """A row of `families.json`. weight: how often it is drawn, relative to others.

    An entry that is repeated is drawn more often. Depths and widths are ranges.
    network: name in `networks`, of a function of `NetworkSettings`.
    """

    network: str
    weight: float
    tasks: list[str]
    norms: list[str]
    depths: tuple[int, int]
    widths: tuple[int, int]
    activations: list[str]


TABLE = json.loads(Path(__file__).with_name("families.json").read_text())
FAMILIES = {name: Family(**row) for name, row in TABLE.items()}


@dataclass(frozen=True)
class Training:
    """A training; everything random follows from its fields.

    Attributes:
        family: kind of network. weights: how they are drawn.
        examples: of training and validation. noise: see `make_task`.
    """

    seed: int
    family: str
    task_name: str
    activation: str
    norm: str
    skip: bool
    weights: str
    depth: int
    width: int
    batch: int
    steps: int
    examples: int
    noise: float

    @property
    def kind(self) -> str:
        """Trainings of one kind are left out together."""
        return f"{self.family}/{self.activation}/{self.task_name}"

    @property
    def task(self) -> Task:
        seed = derive_seed(self.seed, 1) % 2**62
        return make_task(self.task_name, seed, self.examples, self.noise)

    def build(self, seed: int) -> nn.Module:
        """The network with new weights."""
        act, fused = ACTIVATIONS[self.activation], self.seed % 2 == 0
        sizes = self.depth, self.width
        settings = NetworkSettings(self.task, *sizes, act, self.norm, self.skip, fused)
        with seeded(self.seed, 2, seed):
            make = getattr(networks, FAMILIES[self.family].network)
            model = make(settings)
            initialize(model, self.weights)
        return model

    def indices(self, seed: int, step: int) -> Tensor:
        """Numbers of the examples in a batch."""
        count = len(self.task.inputs)
        if self.batch >= count:
            return torch.arange(count)
        key = derive_seed(self.seed, 3, seed, step) % 2**62
        generator = torch.Generator().manual_seed(key)
        return torch.randint(count, (self.batch,), generator=generator)


INITIALIZERS = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
    "small": partial(nn.init.normal_, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "large": lambda weight: weight.mul_(2.0),  # PyTorch's weights
    "tiny": lambda weight: weight.mul_(0.3),
}
COMMON = ["torch"] * 8 + ["he"] * 2 + ["xavier"] * 2 + ["small"] * 2
WEIGHTS = [*COMMON, "orthogonal", "large", "tiny", "zero head"]  # initial weights
UNBIASED = "he", "xavier", "small"  # with biases of zero
# Multiplications of one copy at most: usually, and if it is long or has full batches.
WORK, MUCH_WORK = 8e8, 8e9
LONG_STEPS = 1000, 1500, 2000, 3000
SMALL_BATCH = 8
MIN_STEPS = 20  # steps


def draw(seed: int) -> Training:
    """The training of a seed, in smaller batches or fewer steps if it would be long."""
    training = _drawn(seed)
    is_exact = training.task_name in EXACT
    most = MUCH_WORK if is_exact or training.steps >= LONG_STEPS[0] else WORK
    while not is_exact and training.batch > SMALL_BATCH and _work(training) > most:
        training = replace(training, batch=training.batch // 2)
    steps = int(most / _work(replace(training, steps=1)))
    return replace(training, steps=min(training.steps, max(MIN_STEPS, steps)))


def _work(training: Training) -> float:
    """Multiplications of one copy."""
    model = training.build(0).eval()
    inputs = training.task.inputs[training.indices(0, 0)]
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    work = 3 * counter.get_total_flops() / 2  # forward and backward
    for p in model.parameters():
        if p.dim() > 1:  # products with eigenbases
            work += 4 * p.numel() * (len(p) + p[0].numel())
    return work * training.steps


def _drawn(seed: int) -> Training:
    rng = Random(f"step size {seed}")
    weights = [family.weight for family in FAMILIES.values()]
    name = rng.choices(list(FAMILIES), weights)[0]
    family = FAMILIES[name]
    task = rng.choice(family.tasks)
    depth = _log_uniform(rng, *family.depths)
    width = 4 * max(1, _log_uniform(rng, *family.widths) // 4)
    if name in ("vit", "gpt"):
        width = 8 * (width // 8)
    batch = 2 ** rng.randint(3, 7)
    if task in EXACT or (task == "curve" and rng.random() < 0.6):
        batch = 1024
    elif name == "factors" and rng.random() < 0.3:
        batch = 4096
    elif rng.random() < 0.1:
        batch = rng.choice([1, 2, 4])
    norm = rng.choice(family.norms)
    if norm == "batch":
        batch = max(batch, 16)
    activation = rng.choice(family.activations)
    # mostly short, since they are cheap
    is_long = rng.random() < 0.1
    steps = rng.choice(LONG_STEPS) if is_long else _log_uniform(rng, 20, 600)
    if name == "game":  # in fewer steps nothing is learned
        steps = _log_uniform(rng, 150, 1500)
        batch = max(batch, 64)
    return Training(
        seed=seed,
        family=name,
        task_name=task,
        activation=activation,
        norm=norm,
        skip=rng.random() < 0.4,
        weights="torch" if "sine" in activation else rng.choice(WEIGHTS),
        depth=depth,
        width=width,
        batch=batch,
        steps=steps,
        examples=rng.choice([128, 1024, 4096, 9000]),
        noise=rng.choice([0.0, 0.0, 0.1, 0.3, 0.5]),
    )


def _log_uniform(rng: Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


@torch.no_grad()
def initialize(model: nn.Module, name: str) -> None:
    """Draws the matrices of a network anew, and small ones also in tables."""
    modules = list(model.modules())
    matrices = [x for x in modules if isinstance(x, nn.Linear | nn.Conv2d)]
    if name == "zero head" and matrices:
        nn.init.zeros_(matrices[-1].weight)
    if name not in INITIALIZERS:
        return
    for module in matrices:
        INITIALIZERS[name](module.weight)
        if module.bias is not None and name in UNBIASED:
            nn.init.zeros_(module.bias)
    if name == "small":
        for module in modules:
            if isinstance(module, nn.Embedding):
                INITIALIZERS[name](module.weight)
