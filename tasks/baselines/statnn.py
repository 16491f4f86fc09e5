"""StatNN: an MLP on statistics of every parameter tensor (Unterthiner et al. 2020,
section 4)."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.models.base import ParameterModel
from tasks.models.mlp import MLPConfig, pooled_head
from tasks.networks.architectures import NetworkStack

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATISTICS = 2 + len(QUANTILES)


class StatNN(ParameterModel):
    """The baseline "statnn": mean, variance and quantiles of every tensor.

    Statistics are padded with zeros to the largest number of tensors in the training
    data, as in Kofinas et al. 2024. Further tensors are ignored.
    """

    name = "statnn"
    Config = MLPConfig

    def build(self, d_out: int, config: MLPConfig) -> None:
        super().build(d_out, config)
        self.tensors = max(len(network.names) for network in self.architectures)
        self.layers = pooled_head(
            self.tensors * STATISTICS, config.hidden, d_out, config.dropout
        )

    def forward(self, stack: NetworkStack) -> Tensor:
        values = self.standardised(stack)[: self.tensors]
        of_tensors = [statistics(value.flatten(1)) for value in values]
        missing = self.tensors - len(values)
        return self.layers(pad(torch.cat(of_tensors, -1), (0, missing * STATISTICS)))


def statistics(values: Tensor) -> Tensor:
    """Mean, variance and quantiles of each row, (b, n) -> (b, 7)."""
    mean = values.mean(-1)
    variance = values.var(-1, correction=0)
    quantiles = torch.quantile(values, values.new_tensor(QUANTILES), dim=-1)
    return torch.stack([mean, variance, *quantiles], -1)
