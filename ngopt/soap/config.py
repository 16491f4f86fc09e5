"""What a rule is made of: its constants, the network, and multipliers of step sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.buckets import Layouts
from ngopt.roles.from_graph import ParameterRole


@dataclass(frozen=True)
class SoapConfig:
    """Constants of SOAP: one setting for every network."""

    beta1: float = 0.9  # decay of momentum
    beta2: float = 0.95  # decay of second moments
    beta2_table: float = 0.999  # of embedding tables, whose rows are rarely in a batch
    beta_factor: float = 0.95  # decay of Kronecker factors
    nesterov: float = 1.0  # from momentum, 0, to Nesterov's momentum, 1
    epsilon: float = 1e-4  # its square is added to second moments, in gradient RMS
    clip: float = 10.0  # largest RMS of a gradient, in units of its running RMS

    # Peak step size of a matrix with 64 inputs and weights of PyTorch's initial size.
    # The RMS of an update is about a quarter of it.
    step_size: float = 0.009
    # More than 64 inputs: the step size has the factor (fan_in / 64) ** -fan_exponent.
    fan_exponent: float = 0.5
    chain: float = 7.0  # longer chains of matrices have shorter steps: `chain_length`
    invariant: float = 1.4  # factor for weights whose scale has no effect
    weight_exponent: float = 1.0  # power of the weight scale: see `first_steps`
    # Limits of the weight scale in runs of up to 1,000 steps and of infinitely many.
    largest_size: float = 10.0
    largest_size_of_long_runs: float = 3.0
    # In runs of n < short_run_steps: (short_run_steps / n) ** short_run_exponent times.
    short_run_steps: int = 500
    short_run_exponent: float = 0.4
    # Trained matrices: the step size has the factor exp(-trained_exponent * excess), at
    # least trained_least. The excess of each matrix is at least trained_shared times
    # the mean. If the mean is trained_mean or more, `short_run_steps` has no effect.
    trained_exponent: float = 2.0
    trained_least: float = 0.4
    trained_shared: float = 0.3
    trained_mean: float = 0.15
    # Expected distance of a random walk of t steps: the root of their summed squares
    # times path_ratio (t / (t + path_ratio_steps)) ** .5. If the distance is larger,
    # steps are longer by this power of the ratio, at most path_ratio_limit times.
    path_ratio: float = 4.6
    path_ratio_steps: float = 20.0
    path_ratio_exponent: float = 5.0
    path_ratio_limit: float = 12.0
    # If the cosine of gradient and momentum is below -undone, steps become shorter, by
    # exp(-undone_rate) at most in each step: see `restrained`.
    undone: float = 0.2
    undone_rate: float = 0.05
    # Embedding tables: steps are density ** -rare_exponent times longer.
    rare_exponent: float = 0.5
    embedding: float = 2.5  # factors of the step size by role
    output: float = 1.0
    norm: float = 1.0
    bias: float = 1.0
    other: float = 1.0
    weight_decay: float = 0.05  # decoupled, of matrices, in units of the step size

    warmup: float = 0.08  # share of total_steps
    anytime_step_size: float = 0.01  # without total_steps: see `ngopt.schedule`
    anytime_warmup: int = 30
    anytime_constant: int = 50
    average_power: float = 10.0
    max_factor_size: int = 1024  # limits of Kronecker factors: see `layouts_of`
    factor_memory_ratio: float = 8.0
    precondition_frequency: int | None = None  # steps; None: see `renewal_interval`


@dataclass(frozen=True, eq=False)
class Network:
    """n parameters of one dtype and device, as they are known before the first step."""

    graph: NeuralGraph  # of all parameters of the rule, with their connections
    positions: Sequence[int]  # of these parameters in `graph.parameters`
    roles: Sequence[ParameterRole]
    layouts: Sequence[Layouts]
    # index of the matrix of each bias; else, and of biases without one, the own index
    bias_matrices: Sequence[int]
    total_steps: int | None  # the horizon, if it is known
    like: Tensor  # empty, with the dtype and device of the state

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(self.graph.parameters[i].shape) for i in self.positions]

    @property
    def numels(self) -> list[int]:
        """Numbers of elements; 1 for empty parameters, as numels are divisors."""
        return [max(self.graph.parameters[i].numel, 1) for i in self.positions]


class Measured(NamedTuple):
    """What is measured in a step: tensors (n,), or arrays on the host."""

    grad_rms: Array
    weight_rms: Array
    # bool, parameters with their first gradient; None if there are none
    is_first: Array | None = None
    # share of nonzero elements in the gradient, 1 where it is not measured: of tables
    # in the first steps and, for a multiplier, of all matrices in the first; else None
    density: Array | None = None
    # `spectral_excess` of matrices, 0 of vectors; None unless `is_first`
    excess: Array | None = None
    # |<gradient, weights>| / (their norms), 1 of vectors; None after the first steps
    radial: Array | None = None
    # sums of squares of the momentum before this step; None unless gradients' agreement
    # is measured
    momentum_squares: Array | None = None
    # `FIRST_VALUES` of the first step of each parameter; None without a multiplier
    first: "Measured | None" = None


FIRST_VALUES = "grad_rms", "weight_rms", "density", "excess"
"""Fields of `Measured` of the first step, which the state keeps for a multiplier."""


class BoundMultiplier(Protocol):
    """A multiplier of the step sizes of a network's parameters."""

    def __call__(
        self, measured: Measured, progress: Array | None, state: dict[str, Tensor]
    ) -> Tensor:
        """Factors of the step sizes and weight decays of this step, (n,).

        Args:
            measured: values of this step and of the first, as tensors without autograd.
            progress: t / T, a number or a tensor (n,); None without a horizon, and if
                a scheduler replaces the schedule.
            state: the scalars that the multiplier keeps, (n,) each, by the names in
                `Multiplier.state`; new values are put into it.
        """
        ...


class Multiplier(Protocol):
    """Multiplies the step sizes of a rule, for example by what was learned.

    state: names and initial values of scalars that it keeps for each parameter; they
    are stored with the state of the rule.
    """

    state: ClassVar[Mapping[str, float]]

    def bind(self, network: Network) -> BoundMultiplier | None:
        """The multiplier of a network; None if all its factors are 1."""
        ...


def kept_scalars(multiplier: Multiplier | None) -> dict[str, float]:
    """Names and initial values of the scalars in the state that a multiplier needs."""
    if multiplier is None:
        return {}
    return {**multiplier.state, **{f"first_{key}": 0.0 for key in FIRST_VALUES}}
