"""An MLP on the concatenated parameters, without symmetries."""

from torch import Tensor

from tasks.models.base import ParameterModel
from tasks.models.mlp import MLPConfig, mlp
from tasks.networks.architectures import NetworkStack


class FlatMLP(ParameterModel):
    """The baseline "mlp", for networks of one architecture."""

    name = "mlp"
    Config = MLPConfig
    can_edit = True
    single_architecture = True

    def build(self, d_out: int, config: MLPConfig) -> None:
        super().build(d_out, config)
        numel = self.first.graph.numel
        width = d_out * numel if self.edits else d_out
        self.layers = mlp(numel, config.hidden, width, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        flat = self.first.graph.flatten(self.standardised(stack), batch_dims=1)
        return self.layers(flat)

    def updates(self, stack: NetworkStack) -> list[Tensor]:
        flat = self.forward(stack).unflatten(1, (self.d_out, -1))
        return self.first.graph.unflatten(flat, batch_dims=2)
