"""Base class of the tasks: settings, prepared networks, results."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from torch import Tensor

from harness.files import write_json
from harness.image_datasets import batch_indices
from harness.random import seeded
from harness.settings import check_counts, check_setting, named_settings
from tasks.learning.catalogue import make_model
from tasks.learning.training import Trainable, Trainer, TrainingConfig
from tasks.models.base import NetworkModel, compile_steps
from tasks.networks.architectures import NetworkStack

# Networks per call in evaluation.
EVALUATION_BATCH = 256
# Settings that change no number.
IRRELEVANT = ("folder", "training", "compiled")


@dataclass(frozen=True)
class TaskConfig:
    """Settings of all tasks."""

    data: str
    """Folder of networks."""
    folder: str
    """Where checkpoint, logs and result go."""
    model: str = "ng-gnn"
    """Name of a model, or module:Class of your own `tasks.models.base.NetworkModel`."""
    probes: int = 0
    """Learned inputs of a graph network."""
    symmetry: bool = True
    """Put networks into canonical form, which removes symmetries of their parameters.
    """
    limit: int | None = None
    """Number of networks for training: the first images, or a part of every
    architecture. None for all."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Numbers of the model's config, such as width 64 layers 4."""
    compiled: bool = False
    """Compile training steps, for networks of one architecture. Takes one to two
    minutes, then steps are up to twice as fast (except for ng-t)."""
    training: Annotated[TrainingConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=TrainingConfig
    )

    def __post_init__(self) -> None:
        check_counts(self, "limit")
        check_setting(self.probes >= 0, "probes", "0 or more", self.probes)


Config = TypeVar("Config", bound=TaskConfig)


class NetworkTask(Trainable, Generic[Config]):
    """Base class of tasks on networks. In `build`, a subclass reads its data and makes
    its `model`.

    Data and batches depend on the seed alone, and are the same for all models.
    """

    def __init__(self, config: Config):
        self.config = config
        self.build(config)

    def build(self, config: Config) -> None:
        """Called once, by the constructor."""
        raise NotImplementedError

    def results(self) -> Mapping[str, float]:
        """Test results by name."""
        raise NotImplementedError

    def begin(self, share: float) -> int:
        model = self.model
        return model.set_progress(share) if isinstance(model, NetworkModel) else 0

    def batch(self, count: int, step: int) -> Tensor:
        """Indices of a step's networks. count: of all networks."""
        config = self.config.training
        return batch_indices(count, config.batch, seed=config.seed, step=step)

    def prepared(self, stack: NetworkStack) -> NetworkStack:
        """Networks as inputs of the model."""
        return stack.canonical() if self.config.symmetry else stack

    def make_model(
        self, stacks: list[NetworkStack], d_out: int, edits: bool = False
    ) -> NetworkModel:
        """The model that the settings name, fitted to training networks.

        Raises ValueError for compiled steps on several architectures.
        """
        config = self.config
        sizes = dict(config.sizes)
        if config.probes:
            sizes["probes"] = config.probes
        architectures = list(dict.fromkeys(stack.architecture for stack in stacks))
        if config.compiled and len(architectures) > 1:
            raise ValueError(
                "compiled: expected networks of one architecture; "
                f"got {len(architectures)} architectures. Leave out --compiled."
            )
        with seeded(config.training.seed, 0):
            model = make_model(config.model, architectures, d_out, sizes, edits)
        model.fit(map(self.prepared, stacks))
        if config.compiled and not edits:
            compile_steps(model)
        return model

    def training_outputs(self, stack: NetworkStack) -> Tensor:
        """The outputs of a reader for prepared networks, in training."""
        model = self.model
        assert isinstance(model, NetworkModel)
        if not self.config.compiled:
            return model(stack)
        return torch.cat([model(chunk) for chunk in model.chunks(stack)])

    def eval_outputs(self, stack: NetworkStack) -> Any:
        """The model's outputs in evaluation; not compiled, since batches differ."""
        return self.model.forward(self.prepared(stack))


def run_task(config: Config, make: Callable[[Config], NetworkTask[Config]]) -> None:
    """Trains and evaluates a task, writes `result.json` and prints the figures."""
    task = make(config)
    settings = named_settings(config, IRRELEVANT)
    trainer = Trainer(task, config.training, Path(config.folder), settings)
    trainer.run()
    task.model.eval()
    with torch.no_grad():
        results = task.results()
    progress = trainer.progress
    speed = progress.counted * config.training.batch / progress.seconds
    parameters = sum(p.numel() for p in task.model.parameters())
    result = {
        "config": asdict(config),
        "parameters": parameters,
        "steps": progress.steps,
        "networks_per_second": speed,
        "validation": progress.scores,
        "test": dict(results),
    }
    write_json(Path(config.folder, "result.json"), result)
    text = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
    print(f"{config.model}: {text} on test data; {parameters} parameters")
    print(f"{progress.steps} steps, {speed:.0f} networks a second: {config.folder}")
