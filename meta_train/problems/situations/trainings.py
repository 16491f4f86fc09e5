"""Short and long trainings, extreme batch sizes, and bfloat16 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from meta_train.problems.situations.kinds import read_kinds
from meta_train.problems.supervised import Build


class BFloat16(nn.Module):
    """A network with bfloat16 parameters and float32 inputs and outputs."""

    def __init__(self, build: Build):
        super().__init__()
        self.model = build().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


KINDS = read_kinds(__file__, globals())
