"""Random trainings: a network, a task, initial weights, a batch size and a horizon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from random import Random

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.random import derive_seed, seeded
from meta_train.step_size import networks
from meta_train.step_size.networks import ACTIVATIONS
from meta_train.step_size.tasks import Task, make_task

STARTS = "new", "tuned", "adapter"


@dataclass(frozen=True)
class Training:
    """A training; everything random follows from its fields.

    Attributes:
        family: kind of network. start: "new" weights, all weights of a trained network
            ("tuned"), or low-rank "adapter" matrices on its fixed weights.
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
    start: str

    @property
    def kind(self) -> str:
        """Trainings of one kind are left out together."""
        parts = [self.family, self.activation, self.task_name]
        if self.start != "new":
            parts.append(self.start)
        return "/".join(parts)

    @cached_property
    def task(self) -> Task:
        seed = derive_seed(self.seed, 1) % 2**62
        return make_task(self.task_name, seed, self.examples, self.noise)

    def build(self, seed: int) -> nn.Module:
        """The network with new weights."""
        with seeded(self.seed, 2, seed):
            model = FAMILIES[self.family].build(self)
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


@dataclass(frozen=True)
class Family:
    """Networks of a kind. weight: how often they are drawn, relative to others."""

    weight: float
    tasks: tuple[str, ...]
    build: Callable[[Training], nn.Module]
    norms: tuple[str, ...] = ("",)
    depths: tuple[int, int] = (1, 1)
    widths: tuple[int, int] = (16, 64)
    activations: tuple[str, ...] = ("relu", "relu", "gelu", "tanh", "silu")


def _act(training: Training) -> Callable[[], nn.Module]:
    return ACTIVATIONS[training.activation]


def _sizes(training: Training) -> tuple[int, int, int]:
    """Numbers of inputs, hidden neurons and outputs."""
    inputs = training.task.inputs[0].numel()
    return inputs, training.width, training.task.outputs


def _mlp(t: Training) -> nn.Module:
    model = networks.mlp(_sizes(t), t.depth, _act(t), t.norm, t.skip)
    if t.activation == "sine":
        _initialize_siren(model)
    return model


def _autoencoder(t: Training) -> nn.Module:
    sizes = t.task.inputs[0].numel(), t.width
    return networks.autoencoder(sizes, t.depth, _act(t), t.norm)


def _cnn(t: Training) -> nn.Module:
    sizes = t.task.inputs.shape[1], t.width, t.task.outputs
    return networks.cnn(sizes, t.depth, _act(t), t.norm, t.skip)


def _denoiser(t: Training) -> nn.Module:
    return networks.denoiser((1, t.width), t.depth, _act(t), t.norm)


def _blocks(t: Training, causal: bool) -> nn.Module:
    blocks = []
    for _ in range(t.depth):
        heads = 2 if t.width < 48 else 4
        attention = networks.Attention(t.width, heads, causal, fused=t.seed % 2 == 0)
        blocks.append(networks.Block(t.width, t.norm, _act(t)(), attention))
    return nn.Sequential(*blocks)


def _vit(t: Training) -> nn.Module:
    embed = networks.Patches(1, 14, 4, t.width)
    head = networks.MeanHead(t.width, t.task.outputs)
    return networks.Transformer(embed, _blocks(t, causal=False), head)


def _gpt(t: Training) -> nn.Module:
    words, length = t.task.outputs, t.task.inputs.shape[1]
    embed = networks.Tokens(words, length, t.width)
    head = networks.WordHead(t.width, words, t.norm)
    if t.skip:  # tied embeddings
        head.linear.weight = embed.words.weight
    return networks.Transformer(embed, _blocks(t, causal=True), head)


def _recurrent(t: Training, kind: str) -> nn.Module:
    return networks.Recurrent(kind, t.task.outputs, t.width, t.depth)


def _experts(t: Training) -> nn.Module:
    return networks.Experts(_sizes(t), _act(t), 4)


def _factors(t: Training) -> nn.Module:
    return networks.Factors(t.task.outputs, t.task.outputs, t.width)


def _bag(t: Training) -> nn.Module:
    words = int(t.task.inputs.max()) + 1
    return networks.Bag(words, t.width, t.task.outputs)


def _vectors(t: Training) -> nn.Module:
    return networks.Vectors(t.task.inputs[0].numel(), t.task.outputs)


PLAIN = "", "layer", "batch"
TEXTS = "characters", "markov"
FAMILIES = {
    "mlp": Family(
        5,
        ("small images", "clusters", "teacher", "table"),
        _mlp,
        PLAIN,
        (1, 6),
        (16, 96),
    ),
    "deep mlp": Family(
        2,
        ("small images", "clusters", "teacher"),
        _mlp,
        ("", "", "layer"),
        (8, 24),
        (16, 48),
    ),
    "function": Family(
        2,
        ("picture", "curve"),
        _mlp,
        depths=(2, 5),
        activations=("sine", "sine", "tanh", "relu", "gelu"),
    ),
    "contrast": Family(0.7, ("contrast",), _mlp, PLAIN, (1, 4)),
    "autoencoder": Family(
        1.5,
        ("pixels",),
        _autoencoder,
        PLAIN,
        (1, 6),
        (32, 96),
        ("relu", "tanh", "sigmoid", "gelu"),
    ),
    "cnn": Family(3, ("images",), _cnn, ("", "batch", "group"), (2, 6), (8, 24)),
    "denoiser": Family(
        0.7, ("noisy images",), _denoiser, ("", "batch", "group"), (2, 4), (8, 16)
    ),
    "vit": Family(
        1.5, ("images",), _vit, ("layer", "layer", "rms", ""), (1, 4), (16, 48)
    ),
    "gpt": Family(3, TEXTS, _gpt, ("layer", "layer", "rms", ""), (1, 4), (16, 48)),
    "lstm": Family(
        0.6,
        TEXTS,
        partial(_recurrent, kind="lstm"),
        depths=(1, 2),
        widths=(16, 40),
        activations=("tanh",),
    ),
    "gru": Family(
        0.4,
        TEXTS,
        partial(_recurrent, kind="gru"),
        depths=(1, 2),
        widths=(16, 40),
        activations=("tanh",),
    ),
    "experts": Family(1, ("small images", "clusters"), _experts, widths=(16, 48)),
    "factors": Family(
        0.8, ("ratings",), _factors, widths=(4, 16), activations=("none",)
    ),
    "bag": Family(0.7, ("bags",), _bag, widths=(8, 32), activations=("none",)),
    "vectors": Family(0.4, ("teacher", "clusters"), _vectors, activations=("none",)),
}
TRAINED = "mlp", "cnn", "vit", "gpt", "autoencoder"  # families that are tuned
WEIGHTS = (
    *("torch",) * 8, *("he",) * 2, *("xavier",) * 2, *("small",) * 2,
    "orthogonal", "large", "tiny", "zero head",
)  # fmt: skip
WORK = 8e8  # multiplications of one copy at most, three times as many if it is long
LONG = 1000  # steps
SMALL_BATCH = 8
LEAST = 20  # steps
EDGE = 1024  # columns of a matrix with a Kronecker factor, at most


def draw(seed: int) -> Training:
    """The training of a seed, in smaller batches or fewer steps if it would be long."""
    training = _drawn(seed)
    most = WORK * (3 if training.steps >= LONG else 1)
    while training.batch > SMALL_BATCH and _work(training) > most:
        training = replace(training, batch=training.batch // 2)
    steps = int(most / _work(replace(training, steps=1)))
    return replace(training, steps=min(training.steps, max(LEAST, steps)))


def _work(training: Training) -> float:
    """Multiplications of one copy."""
    model = training.build(0)
    inputs = training.task.inputs[training.indices(0, 0)]
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    work = 3 * counter.get_total_flops() / 2  # forward and backward
    for p in model.parameters():
        if p.dim() > 1:
            rows, columns = len(p), p[0].numel()
            sides = [side for side in (rows, columns) if side <= EDGE]
            work += 4 * p.numel() * sum(sides)
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
    if name == "function" and rng.random() < 0.6:
        batch = 1024
    elif name in ("factors", "vectors") and rng.random() < 0.3:
        batch = 4096
    elif rng.random() < 0.1:
        batch = rng.choice([1, 2, 4])
    start = "new"
    if name in TRAINED and rng.random() < 0.2:
        start = rng.choice(["tuned", "adapter"])
    norm = rng.choice(family.norms)
    if norm == "batch" or name == "contrast":
        batch = max(batch, 16)
    activation = rng.choice(family.activations)
    return Training(
        seed=seed,
        family=name,
        task_name=task,
        activation=activation,
        norm=norm,
        skip=rng.random() < 0.4,
        weights="torch" if activation == "sine" else rng.choice(WEIGHTS),
        depth=depth,
        width=width,
        batch=batch,
        steps=_steps(rng),
        examples=rng.choice([1024, 4096, 9000]),
        noise=rng.choice([0.0, 0.0, 0.1, 0.3]),
        start=start,
    )


def _log_uniform(rng: Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _steps(rng: Random) -> int:
    """Mostly short, since they are cheap; some have 1,000 steps or more."""
    if rng.random() < 0.07:
        return rng.choice([1000, 1500, 2000])
    return _log_uniform(rng, 20, 600)


def initialize(model: nn.Module, name: str) -> None:
    """Draws the matrices of a network anew."""
    if name == "torch":
        return
    matrices = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            matrices.append(module)
    if not matrices:
        return
    if name == "zero head":
        nn.init.zeros_(matrices[-1].weight)
        return
    for module in matrices:
        weight, bias = module.weight, module.bias
        if name == "he":
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        elif name == "xavier":
            nn.init.xavier_normal_(weight)
        elif name == "small":
            nn.init.normal_(weight, std=0.02)
        elif name == "orthogonal":
            nn.init.orthogonal_(weight)
        else:
            with torch.no_grad():
                weight.mul_({"large": 2.0, "tiny": 0.3}[name])
        if bias is not None and name in ("he", "xavier", "small"):
            nn.init.zeros_(bias)
    if name == "small":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)


@torch.no_grad()
def _initialize_siren(model: nn.Module) -> None:
    """As in Sitzmann et al. 2020, section 3.2, at frequency 1 in the hidden layers."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    linear[0].weight.uniform_(-15.0, 15.0)
    for module in linear[1:]:
        bound = (6 / module.in_features) ** 0.5
        module.weight.uniform_(-bound, bound)
