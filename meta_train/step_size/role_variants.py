"""Settings for a second round: other step sizes of single roles.

What a step size of all parameters leaves open: whether outputs, tables, vectors, layers
near the inputs or weight decay want another factor.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from meta_train.step_size.outcomes import UNCHANGED
from meta_train.step_size.trainings import Training, started
from ngopt import build_graph
from ngopt.functional import Hyper
from ngopt.learned_step.features import layer_positions
from ngopt.roles.from_graph import ParameterRole, roles_of
from ngopt.soap.schedule import NOMINAL_STEP
from ngopt.soap.soap import Soap

FACTORS = 0.5, 2.0
ROLES = {"output": ["output"], "table": ["embedding"], "vectors": ["norm", "bias"]}
SLOPES = {"depth 0.5": -1.0, UNCHANGED: 0.0, "depth 2": 1.0}
"""log2 of the factor of the last layer by variant; the first has the inverse."""


def role_variants(training: Training, multiplier: float) -> dict[str, Hyper]:
    """Settings by name, each with one change of `multiplier` times the default's steps.

    "output 2": twice the step size of outputs; "inputs": of the first layer; "depth":
    of the last layer, and half of the first; "decay": twice the weight decay. Changes
    without effect are left out.
    """
    model = started(training, 0)
    roles = roles_of(build_graph(model.named_parameters()))
    count = len(roles)
    variants = {UNCHANGED: Hyper([multiplier] * count, [None] * count)}
    for name, powers in _powers(roles):
        for factor in FACTORS:
            lr = [multiplier * factor**power for power in powers]
            variants[f"{name} {factor:g}"] = Hyper(lr, [None] * count)
    config = Soap().config
    own = config.weight_decay * config.step_size / NOMINAL_STEP  # in AdamW's units
    for factor in FACTORS:
        decay = [factor * own if role.blocks else None for role in roles]
        variants[f"decay {factor:g}"] = Hyper([multiplier] * count, decay)
    return variants


def _powers(roles: Sequence[ParameterRole]) -> Iterator[tuple[str, list[float]]]:
    """Names of changes, and the power of the factor for each parameter."""
    rows = {}
    for name, own in ROLES.items():
        rows[name] = [float(role.role in own) for role in roles]
    layers = list(accumulate(bool(role.blocks) for role in roles))
    is_deep = layers[-1] > 1
    rows["inputs"] = [float(layer == 1 and is_deep) for layer in layers]
    rows["depth"] = layer_positions(roles)
    for name, powers in rows.items():
        if len(set(powers)) > 1:  # others change all parameters alike, or none
            yield name, powers
