"""ProbeGen: an MLP on outputs for generated inputs (Kahana et al. 2024)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tasks.models.base import NetworkModel
from tasks.models.learned_inputs import GeneratedInputs
from tasks.models.mlp import mlp
from tasks.networks.architectures import Architecture, NetworkStack


@dataclass(frozen=True)
class ProbeGenConfig:
    """probes: number of inputs. latent, channels: see `GeneratedInputs`.

    hidden, dropout: of the MLP.
    """

    probes: int = 64
    latent: int = 32
    channels: int = 16
    hidden: tuple[int, ...] = (256,) * 5
    dropout: float = 0.0


class ProbeGen(NetworkModel):
    """The baseline "probegen", invariant to every change that keeps the function.

    Raises ValueError for networks with other shapes of inputs or outputs.
    """

    name = "probegen"
    Config = ProbeGenConfig

    def build(self, d_out: int, config: ProbeGenConfig) -> None:
        self.interface = interface_of(self.first)
        for architecture in self.architectures:
            self._check(architecture)
        shape, outputs = self.interface
        self.inputs = GeneratedInputs(
            config.probes, shape, config.latent, config.channels
        )
        self.head = mlp(config.probes * outputs, config.hidden, d_out, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        self._check(stack.architecture)
        outputs = stack.architecture.outputs(stack.params, self.inputs())
        return self.head(outputs.flatten(1))

    def _check(self, architecture: Architecture) -> None:
        expected, got = self.interface, interface_of(architecture)
        if got != expected:
            raise ValueError(
                f"probegen: expected networks of inputs {expected.shape} "
                f"and {expected.outputs} outputs; got {got.shape} and {got.outputs}"
            )


class Interface(NamedTuple):
    """Shape of an input, and number of outputs."""

    shape: tuple[int, ...]
    outputs: int


def interface_of(architecture: Architecture) -> Interface:
    example = architecture.module.example_input()
    group = architecture.graph.groups[architecture.module.output_group]
    return Interface(tuple(example.shape[1:]), group.size)
