"""ProbeGen: an MLP on what networks say of generated inputs (Kahana et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.models.base import NetworkModel
from tasks.models.learned_inputs import GeneratedInputs
from tasks.models.mlp import mlp
from tasks.networks.architectures import Architecture, NetworkStack


@dataclass(frozen=True)
class ProbeGenConfig:
    """probes: inputs. latent: size of their codes. channels: of the generator of
    images, before its last map. hidden, dropout: of the MLP.
    """

    probes: int = 64
    latent: int = 32
    channels: int = 16
    hidden: tuple[int, ...] = (256,) * 5
    dropout: float = 0.0


class ProbeGen(NetworkModel):
    """The baseline "probegen": sees outputs on probes alone, so that all symmetries are
    known.

    Probes are learned codes that went through a generator without activations between
    its layers, which all networks share. Raises ValueError for networks of other inputs
    or outputs.
    """

    name = "probegen"

    def __init__(
        self,
        architectures: Sequence[Architecture],
        d_out: int,
        config: ProbeGenConfig,
        edits: bool = False,
    ):
        super().__init__(architectures, edits)
        self.ends = ends(architectures[0])
        for other in architectures:
            self._check(other)
        shape, outputs = self.ends
        self.inputs = GeneratedInputs(
            config.probes, shape, config.latent, config.channels
        )
        self.head = mlp(config.probes * outputs, config.hidden, d_out, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        self._check(stack.architecture)
        said = stack.architecture.outputs(stack.params, self.inputs())
        return self.head(said.flatten(1))

    def _check(self, architecture: Architecture) -> None:
        found = ends(architecture)
        if found != self.ends:
            told = "{} and {} outputs; got {} and {}".format(*self.ends, *found)
            raise ValueError(f"probegen: expected networks of inputs {told}")


def ends(architecture: Architecture) -> tuple[tuple[int, ...], int]:
    """The shape of an input, and how many outputs there are."""
    example = architecture.module.example_input()
    group = architecture.graph.groups[architecture.module.output_group]
    return tuple(example.shape[1:]), group.size
