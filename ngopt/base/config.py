"""All numbers of the rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SoapConfig:
    """Numbers of SOAP: one setting for every network."""

    beta1: float = 0.9  # decay of momentum,
    beta2: float = 0.95  # of second moments,
    beta2_table: float = 0.999  # of those of tables, whose rows are rarely in a batch,
    beta_factor: float = 0.95  # of Kronecker factors
    nesterov: float = 1.0  # how far to go from momentum, 0, to Nesterov's, 1
    epsilon: float = 1e-4  # beside the root of second moments, in RMS of the gradient
    clip: float = 10.0  # a gradient's RMS is clipped to so many times its running RMS

    # Of a matrix with 64 inputs and weights of PyTorch's initial size, at the height of
    # the schedule; the RMS of an update is about a quarter of it.
    step_size: float = 0.009
    fan_exponent: float = 0.5  # it goes with (fan_in / 64) ** -fan_exponent,
    fan_cap: float = 1.0  # at most so many times,
    weight_exponent: float = 1.0  # and with what `ngopt.base.first_steps` says to this
    # Below `short` steps: (short / total_steps) ** short_exponent times longer ones.
    short: int = 500
    short_exponent: float = 0.4
    # Steps of trained matrices: exp(-trained_exponent * excess) times shorter, at least
    # trained_least. Every matrix has this share of the mean excess. If the mean is
    # trained_mean or more, `short` has no effect.
    trained_exponent: float = 2.0
    trained_least: float = 0.4
    trained_shared: float = 0.3
    trained_mean: float = 0.15
    # A path is straight if the distance is `straight` (t / (t + straight_steps)) **
    # .5 times the root of the summed squares of steps. Beyond that, steps are longer by
    # this power of the ratio, at most straight_most times.
    straight: float = 4.6
    straight_steps: float = 20.0
    straight_exponent: float = 5.0
    straight_most: float = 12.0
    # Steps of tables: density ** -rare_exponent times longer, by nonzero gradients.
    rare_exponent: float = 0.5
    embedding: float = 2.5  # factors for parameters of these roles
    output: float = 1.0
    norm: float = 1.0
    bias: float = 1.0
    other: float = 1.0
    weight_decay: float = 0.05  # of matrices, decoupled, in units of the step size

    warmup: float = 0.08  # share of total_steps
    open_step_size: float = 0.01  # without total_steps: see `ngopt.schedule`
    open_warmup: int = 30
    open_constant: int = 50
    average_power: float = 10.0

    longest: int = 1024  # limits of Kronecker factors: see `layouts_of`
    budget: float = 8.0
    renew_every: int | None = None  # steps; None: see `renewal_interval`
