"""All constants of the default rule."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SoapConfig:
    """Constants of SOAP: one setting for every network."""

    beta1: float = 0.9  # decay of momentum
    beta2: float = 0.95  # decay of second moments
    beta2_table: float = 0.999  # of embedding tables, whose rows are rarely in a batch
    beta_factor: float = 0.95  # decay of Kronecker factors
    nesterov: float = 1.0  # from momentum, 0, to Nesterov's momentum, 1
    epsilon: float = 1e-4  # added to the root of second moments, in gradient RMS
    clip: float = 10.0  # largest RMS of a gradient, in units of its running RMS

    # Peak step size of a matrix with 64 inputs and weights of PyTorch's initial size.
    # The RMS of an update is about a quarter of it.
    step_size: float = 0.009
    fan_exponent: float = 0.5  # the step size has the factor (fan_in / 64) ** -exponent
    fan_cap: float = 1.0  # largest value of that factor
    weight_exponent: float = 1.0  # power of the weight scale: see `first_steps`
    # With total_steps < short: (short / total_steps) ** short_exponent times longer.
    short: int = 500
    short_exponent: float = 0.4
    # Trained matrices: the step size has the factor exp(-trained_exponent * excess), at
    # least trained_least. The excess of each matrix is at least trained_shared times
    # the mean. If the mean is trained_mean or more, `short` has no effect.
    trained_exponent: float = 2.0
    trained_least: float = 0.4
    trained_shared: float = 0.3
    trained_mean: float = 0.15
    # Expected distance of a random walk of t steps: the root of their summed squares
    # times straight (t / (t + straight_steps)) ** .5. If the distance is larger, steps
    # are longer by this power of the ratio, at most straight_most times.
    straight: float = 4.6
    straight_steps: float = 20.0
    straight_exponent: float = 5.0
    straight_most: float = 12.0
    # Embedding tables: steps are density ** -rare_exponent times longer.
    rare_exponent: float = 0.5
    embedding: float = 2.5  # factors of the step size by role
    output: float = 1.0
    norm: float = 1.0
    bias: float = 1.0
    other: float = 1.0
    weight_decay: float = 0.05  # decoupled, of matrices, in units of the step size

    warmup: float = 0.08  # share of total_steps
    open_step_size: float = 0.01  # without total_steps: see `ngopt.schedule`
    open_warmup: int = 30
    open_constant: int = 50
    average_power: float = 10.0

    longest: int = 1024  # limits of Kronecker factors: see `layouts_of`
    budget: float = 8.0
    renew_every: int | None = None  # steps; None: see `renewal_interval`
