"""What networks say of learned inputs, as features of their neurons (Kofinas et al.
2024, section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.models.learned_inputs import LearnedInputs
from tasks.networks.architectures import NetworkStack


class ProbeFeatures(NamedTuple):
    """What b networks say of m inputs.

    codes: of neurons, for every group of the graph (b, size, width), None where they
    have no value.
    answers: those of outputs, (b, outputs, 2 m), see `answers`.
    """

    codes: Sequence[Tensor | None]
    answers: Tensor


class Probes(nn.Module):
    """Inputs that are learned, the same for all networks;
    neurons get a code of what they say of them.

    Neurons with the same role share their code's MLP (a departure from one linear map a
    layer, so that other depths work). Of values in space, as a convolution's, neurons
    say mean and deviation; outputs say theirs, and its log-softmax over all of them, in
    which a classifier answers.

    count: of the inputs. hidden: width of the MLPs.
    """

    def __init__(
        self, inputs: LearnedInputs, count: int, width: int, hidden: int = 128
    ):
        super().__init__()
        self.inputs = inputs
        numbers = 2 * count
        self.codes = nn.ModuleDict(
            {role: _mlp(numbers, hidden, width) for role in READ}
        )

    def forward(self, stack: NetworkStack) -> ProbeFeatures:
        architecture = stack.architecture
        values = architecture.group_activations(stack.params, self.inputs())
        groups = architecture.graph.groups
        roles = [group.role if group.role in READ else "hidden" for group in groups]
        numbers = [
            None if own is None else READ[role](own)
            for role, own in zip(roles, values, strict=True)
        ]
        codes = [
            None if own is None else self.codes[role](own)
            for role, own in zip(roles, numbers, strict=True)
        ]
        outputs = numbers[architecture.module.output_group]
        assert outputs is not None
        return ProbeFeatures(codes, outputs)

    def answers(self, stack: NetworkStack) -> Tensor:
        """What outputs alone say, (b, outputs, 2 m), in less time."""
        return answers(stack.architecture.outputs(stack.params, self.inputs()))


def answers(values: Tensor) -> Tensor:
    """Of outputs (b, m, size) -> (b, size, 2 m): themselves and their log-softmax, 0
    for one."""
    return torch.cat([values, values.log_softmax(-1)], 1).mT


def statistics(values: Tensor) -> Tensor:
    """(b, m, size, *space) -> (b, size, 2 m): means over space, and deviations, 0
    without space."""
    space = list(range(3, values.dim()))
    if not space:
        return torch.cat([values, torch.zeros_like(values)], 1).mT
    means = values.mean(space, keepdim=True)
    # several times as fast as `std`
    norms = torch.linalg.vector_norm(values - means, dim=space)
    deviations = norms / sqrt(values.shape[3:].numel())
    return torch.cat([means.flatten(2), deviations], 1).mT


# How the values of neurons are read, by their role; any other is read as hidden.
READ = {"input": statistics, "hidden": statistics, "output": answers}


def _mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, hidden),
        nn.SiLU(),
        nn.Linear(hidden, d_out),
        nn.LayerNorm(d_out),
    )
