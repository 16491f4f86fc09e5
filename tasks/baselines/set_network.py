"""A network on the set of all parameters (Zaheer et al. 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.models.base import ParameterModel
from tasks.models.mlp import pooled_head
from tasks.networks.architectures import NetworkStack


@dataclass(frozen=True)
class SetNetworkConfig:
    """width: features of an element. head, dropout: of the MLP on their mean."""

    width: int = 64
    head: tuple[int, ...] = (256,)
    dropout: float = 0.0


class SetNetwork(ParameterModel):
    """The baseline "set": an MLP of the mean of element features.

    h = linear(relu(value * slope[tensor] + offset[tensor])) for every element
    output = MLP(mean of relu(h))

    It is invariant to all permutations of the elements of a tensor, or of all tensors
    of a kind if architectures differ.
    """

    name = "set"
    Config = SetNetworkConfig

    def build(self, d_out: int, config: SetNetworkConfig) -> None:
        super().build(d_out, config)
        rows = self.standardise.row_count
        self.slope = nn.Parameter(torch.randn(rows, config.width))
        self.offset = nn.Parameter(torch.randn(rows, config.width))
        self.inner = nn.Linear(config.width, config.width)
        self.head = pooled_head(config.width, config.head, d_out, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        total, numel = 0, 0
        rows = self.standardise.rows(stack)
        for row, value in zip(rows, self.standardised(stack), strict=True):
            flat = value.flatten(1).unsqueeze(-1)
            first = torch.addcmul(self.offset[row], flat, self.slope[row]).relu()
            total = total + self.inner(first).relu().sum(1)
            numel += flat.shape[1]
        return self.head(total / numel)
