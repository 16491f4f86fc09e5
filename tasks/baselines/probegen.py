"""ProbeGen: an MLP on outputs for generated inputs (Kahana et al. 2024)."""

from dataclasses import dataclass

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
        expected_shape, expected_outputs = self.interface
        shape, outputs = interface_of(architecture)
        if (shape, outputs) != self.interface:
            raise ValueError(
                f"probegen: expected networks of inputs {expected_shape} "
                f"and {expected_outputs} outputs; got {shape} and {outputs}"
            )


def interface_of(architecture: Architecture) -> tuple[tuple[int, ...], int]:
    """Shape of an input, and number of outputs."""
    example = architecture.module.example_input()
    group = architecture.graph.groups[architecture.module.output_group]
    return tuple(example.shape[1:]), group.size
