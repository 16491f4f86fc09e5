"""DMC: one-dimensional convolutions over all parameters (Eilertsen et al. 2020)."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from tasks.models.base import ParameterModel
from tasks.models.mlp import pooled_head
from tasks.networks.architectures import NetworkStack


@dataclass(frozen=True)
class DMCConfig:
    """widths, kernel, stride: of the convolutions.

    head, dropout: hidden widths and dropout of the MLP.
    """

    widths: tuple[int, ...] = (16, 32, 64, 64)
    kernel: int = 5
    stride: int = 2
    head: tuple[int, ...] = (256,)
    dropout: float = 0.0


class DMC(ParameterModel):
    """The baseline "dmc": strided convolutions with ReLU, the mean over positions, an
    MLP.

    As in Lim et al. 2024, it reads all parameters of a network of any size, in their
    order. (Eilertsen et al. read sections of a fixed length.) It has no symmetry.
    """

    name = "dmc"
    Config = DMCConfig

    def build(self, d_out: int, config: DMCConfig) -> None:
        super().build(d_out, config)
        kernel = config.kernel
        self.layers = nn.Sequential()
        for c_in, c_out in pairwise((1, *config.widths)):
            conv = nn.Conv1d(c_in, c_out, kernel, config.stride, padding=kernel // 2)
            self.layers.extend([conv, nn.ReLU()])
        self.head = pooled_head(config.widths[-1], config.head, d_out, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        flat = stack.architecture.graph.flatten(self.standardised(stack), batch_dims=1)
        return self.head(self.layers(flat.unsqueeze(1)).mean(-1))
