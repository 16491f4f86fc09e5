"""All numbers of the base rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DirectionConfig:
    """Numbers of the direction.

    beta1, beta2, beta_factor: decays of momentum, second moments and Kronecker factors.
    nesterov: how far to go from momentum, 0, to Nesterov's, 1.
    epsilon: damping, in root mean squares of the parameter's gradients.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    beta_factor: float = 0.95
    nesterov: float = 1.0
    epsilon: float = 1e-4

    @property
    def ahead(self) -> float:
        """Weight of the gradient in Nesterov's momentum."""
        return (1 - self.beta1) * self.nesterov


@dataclass(frozen=True)
class SoapConfig(DirectionConfig):
    """All numbers of the rule, beside those of the direction.

    step_size: of a matrix with 64 inputs and weights of PyTorch's initial size, at the schedule's
        height; the root mean square of an update is about a quarter of it.
    fan_exponent, fan_cap: the step size goes with fan_in ** -fan_exponent, up to `fan_cap` times.
    weight_exponent: and with the size of the weights, in that of PyTorch's initial ones, to this
        power: at 1, steps are shares of the weights, however these have grown.
    embedding, output, norm, bias, other: factors of parameters of these roles.
    weight_decay: of matrices, decoupled, in units of the step size.
    warmup: share of the horizon. clip: see `measure`. renew_every: steps between renewals of a
        basis, fewer in the beginning. longest, budget: see `layouts_of`.
    open_step_size, open_warmup, open_constant, average_power: without a horizon; see
        `without_horizon` and `average_weight`.
    """

    step_size: float = 0.009
    fan_exponent: float = 0.5
    fan_cap: float = 1.0
    weight_exponent: float = 1.0
    embedding: float = 2.5
    output: float = 1.0
    norm: float = 1.0
    bias: float = 1.0
    other: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.08
    clip: float = 10.0
    renew_every: int = 10
    longest: int = 1024
    budget: float = 8.0
    open_step_size: float = 0.01
    open_warmup: int = 30
    open_constant: int = 50
    average_power: float = 10.0
