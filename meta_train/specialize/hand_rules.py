"""The best hand-made rule for a family: the default, Adam or Muon, each tuned."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from meta_train.specialize.family import HandRule
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import SCHEDULES, FirstOrder

MULTIPLIERS = tuple(2.0**k for k in range(-3, 5))  # of the default's step size
ADAM_LRS = tuple(1e-4 * 10 ** (k / 2) for k in range(9))
MUON_LRS = tuple(1e-3 * 10 ** (k / 2) for k in range(7))
ADAM_BETA1S = (0.5, 0.8, 0.9, 0.95)
MUON_BETA1S = (0.8, 0.9, 0.95)
BETA2S = (0.9, 0.95, 0.99, 0.999)
NEIGHBORS = (0.56, 0.75, 1.33, 1.78)  # of the best rate, at the end

Loss = Callable[[HandRule], float]
"""Of a rule on the members of the search; lower is better."""

KINDS = "default", "adam", "muon"


def scaled_default(multiplier: float) -> Soap:
    """The default with longer or shorter steps; with 1 it is the default."""
    if multiplier == 1:
        return Soap()
    return Soap(SoapConfig(step_size=multiplier * SoapConfig().step_size))


def best_rule(kind: str, loss: Loss) -> tuple[HandRule, float]:
    """The best rule of a kind and its loss, by coordinates: rate, betas, schedule, and
    the rate again."""
    if kind == "default":
        return _best((scaled_default(x) for x in MULTIPLIERS), loss)
    start = FirstOrder("adam") if kind == "adam" else FirstOrder("muon", beta1=0.95)
    lrs = ADAM_LRS if kind == "adam" else MUON_LRS
    beta1s = ADAM_BETA1S if kind == "adam" else MUON_BETA1S
    rule, value = _best((replace(start, lr=lr) for lr in lrs), loss)
    assert isinstance(rule, FirstOrder)
    for name, values in (
        ("beta1", beta1s),
        ("beta2", BETA2S),
        ("schedule", SCHEDULES),
        ("lr", [x * rule.lr for x in NEIGHBORS]),
    ):
        others = (
            replace(rule, **{name: x}) for x in values if x != getattr(rule, name)
        )
        other, other_value = _best(others, loss)
        if other_value < value:
            assert isinstance(other, FirstOrder)
            rule, value = other, other_value
    return rule, value


def _best(rules: Iterator[HandRule], loss: Loss) -> tuple[HandRule, float]:
    losses = [(rule, loss(rule)) for rule in rules]
    return min(losses, key=lambda pair: pair[1])


def runs_of_search() -> int:
    """The number of rules that are tried."""
    adam = len(ADAM_LRS) + len(ADAM_BETA1S) + len(BETA2S) + len(SCHEDULES)
    muon = len(MUON_LRS) + len(MUON_BETA1S) + len(BETA2S) + len(SCHEDULES)
    return len(MULTIPLIERS) + adam + muon + 2 * (len(NEIGHBORS) - 3)
