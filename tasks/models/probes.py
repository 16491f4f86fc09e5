"""Probe features: activations of networks on learned inputs, as features of their
neurons (Kofinas et al. 2024, section 2.4)."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.networks.architectures import NetworkStack


class ProbeFeatures(NamedTuple):
    """Features of b networks on m probing inputs.

    codes: for every group of the graph (b, size, width), or None without activations.
    outputs: of output neurons, (b, outputs, 2 m), see `with_log_softmax`.
    """

    codes: Sequence[Tensor | None]
    outputs: Tensor


class Probes(nn.Module):
    """Learned inputs, and MLPs that encode the activations of each neuron on them.

    Neurons of the same role share an MLP, so that networks may differ in depth. (The
    paper has one linear map per layer.) It reads mean and standard deviation over
    space; for outputs, their values and the log-softmax over all outputs.

    inputs: () -> (m, *shape). count: m. width: of the codes. hidden: width of the MLPs.
    """

    def __init__(self, inputs: nn.Module, count: int, width: int, hidden: int = 128):
        super().__init__()
        self.inputs = inputs
        self.codes = nn.ModuleDict()
        for role in FEATURES_BY_ROLE:
            self.codes[role] = nn.Sequential(
                nn.Linear(2 * count, hidden),
                nn.SiLU(),
                nn.Linear(hidden, width),
                nn.LayerNorm(width),
            )

    def forward(self, stack: NetworkStack) -> ProbeFeatures:
        architecture = stack.architecture
        activations = architecture.group_activations(stack.params, self.inputs())
        features: list[Tensor | None] = [None] * len(activations)
        codes: list[Tensor | None] = [None] * len(activations)
        for index, group in enumerate(architecture.graph.groups):
            values = activations[index]
            if values is not None:
                role = group.role if group.role in FEATURES_BY_ROLE else "hidden"
                features[index] = FEATURES_BY_ROLE[role](values)
                codes[index] = self.codes[role](features[index])
        outputs = features[architecture.module.output_group]
        assert outputs is not None
        return ProbeFeatures(codes, outputs)

    def output_features(self, stack: NetworkStack) -> Tensor:
        """The outputs of `ProbeFeatures` alone, which is faster."""
        return with_log_softmax(stack.architecture.outputs(stack.params, self.inputs()))


def with_log_softmax(outputs: Tensor) -> Tensor:
    """Outputs (b, m, size) -> (b, size, 2 m): values, and log-softmax over size."""
    return torch.cat([outputs, outputs.log_softmax(-1)], 1).mT


def mean_and_std(values: Tensor) -> Tensor:
    """(b, m, size, *space) -> (b, size, 2 m): means and standard deviations over space.

    Without space, the values and zeros.
    """
    space = list(range(3, values.dim()))
    if not space:
        return torch.cat([values, torch.zeros_like(values)], 1).mT
    means = values.mean(space, keepdim=True)
    # several times as fast as `std`
    norms = torch.linalg.vector_norm(values - means, dim=space)
    deviations = norms / sqrt(values.shape[3:].numel())
    return torch.cat([means.flatten(2), deviations], 1).mT


# Features of the activations of neurons, by role. Other roles are treated as hidden.
FEATURES_BY_ROLE = {
    "input": mean_and_std,
    "hidden": mean_and_std,
    "output": with_log_softmax,
}
