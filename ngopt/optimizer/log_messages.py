"""Warnings and log messages of `NGOptimizer`."""

import logging
import os
import traceback
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from torch import Tensor, distributed

from ngopt.functional import Record, State, UpdateRule
from ngopt.graph import NeuralGraph
from ngopt.graph.connectivity import unconnected
from ngopt.optimizer.param_groups import Group
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.roles.from_graph import roles_of
from ngopt.schedule import SPARE_STEPS
from ngopt.soap.config import SoapConfig
from ngopt.specialized.storage import description_of, rates_of
from ngopt.user_warnings import warn

logger = logging.getLogger("ngopt")

LARGE = 10  # a larger scale diverges; a larger lr is probably meant as total_steps
LISTED_UNCONNECTED = 5  # names in the line about a graph
TINY = 1e-30
ZERO_FILE = "zero_redundancy_optimizer.py"  # of torch.distributed.optim


class Messages:
    """Warnings and log messages of one optimizer, each at most once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def check_new(self, groups: Sequence[Group]) -> None:
        """Warns of a large lr or scale of new groups."""
        if LARGE < _largest(groups, "lr") < inf:
            self._warn_once(
                "lr",
                f"lr = {_largest(groups, 'lr'):g} has no unit: only ratios to the "
                "largest lr count. For the number of steps, pass total_steps=.",
            )
        scale = _largest(groups, "scale")
        if scale > LARGE:
            self._warn_once(
                "scale",
                f"scale = {scale:g} multiplies every update by {scale:g} and may "
                "diverge. The default is scale=1.0.",
            )

    def log_reference(
        self, reference: float, rates: Sequence[float], has_scheduler: bool
    ) -> None:
        """Logs R and the ratios of groups to it; rates: the largest of each group."""
        if not self.is_first("reference"):
            return
        ratios = ", ".join(f"{rate / reference:.3g}" for rate in rates)
        text = (
            f"NGOptimizer: lr has no unit: steps are multiplied by scale * lr / "
            f"{reference:g} (of the groups: {ratios}). To sweep, use scale=."
        )
        if has_scheduler:
            text += " The scheduler replaces the built-in schedule."
        logger.info(text)

    def warn_of_absolute(self, peak: float, reference: float) -> None:
        """Warns of rates that fall before they were near the largest one."""
        self._warn_once(
            "absolute",
            f"lr falls after at most {peak:g}, far below reference_lr = {reference:g}, "
            f"so that training is {reference / max(peak, TINY):.0f} times slower. Make "
            "a LambdaLR return ratios to the largest rate; for rates that a loop "
            "writes, leave lr out of the constructor.",
        )

    def warn_of_high(self, peak: float, usual: float) -> None:
        """Warns of rates far above those of the run. usual: the largest of the run."""
        self._warn_once(
            "high",
            f"lr was {peak:g} and is {usual:g}; reference_lr stays {peak:g}, so that "
            "training is slower by their ratio. Make a new optimizer after a search of "
            "learning rates, begin warm-ups below the usual rate, or pass scale=.",
        )

    def warn_of_added(self, lr: float, default: float) -> None:
        """Warns of a group with an lr that is added to groups with the default."""
        self._warn_once(
            "added",
            f"a group is added with lr = {lr:g}; those without an lr have {default:g}, "
            f"so its steps are multiplied by {lr / default:g}. Pass the lr of the "
            "other groups to the constructor.",
        )

    def warn_of_constant(self, steps: int) -> None:
        """Warns of a scheduler whose rates have not fallen after most of the steps."""
        self._warn_once(
            "constant",
            f"the scheduler keeps lr at its largest value for {steps} steps, in place "
            "of the decay to zero of total_steps. Leave the scheduler out, as "
            "total_steps has a warm-up, or let it fall to zero.",
        )

    def remind_of_average(self) -> None:
        """Says that a run without a horizon needs the average, unless it was used."""
        if self.is_first("average"):
            logger.warning(
                "NGOptimizer: without total_steps the step size never falls to zero. "
                "Evaluate the averaged weights, between opt.eval() and opt.train(), "
                "and end with opt.load_average()."
            )

    def warn_of_ignored(self, names: Sequence[str]) -> None:
        """names: arguments or keys of parameter groups without an effect."""
        if names:
            # of LBFGS, whose step(closure) makes many
            advice = " step(closure) is one step: write a loop." * ("max_iter" in names)
            self._warn_once(
                "ignored",
                f"these settings of other optimizers have no effect: "
                f"{', '.join(names)}. To set constants of the default, pass "
                f"rule=SoapConfig(...).{advice}",
            )

    def check_skipped(self, state: State) -> None:
        """Warns if no gradient so far was finite; the host alone is read."""
        records = [record for record in state.values() if "skipped" in record]
        if not records or not all(record["skipped"].is_cpu for record in records):
            return
        if all(record["skipped"] == record["step"] for record in records):
            self._warn_once(
                "skipped",
                "all steps so far were skipped, as no gradient was finite. Check the "
                "loss and the inputs for nan and inf.",
            )

    def check_horizon(self, records: Sequence[Record], total_steps: int) -> None:
        """Warns of steps beyond the horizon. records: the state of all parameters."""
        steps = max(int(record.get("step", 0)) for record in records)
        if steps > total_steps + SPARE_STEPS:
            self._warn_once(
                "horizon",
                f"{steps} steps were made of total_steps={total_steps}; the step size "
                "stays at its last value, near zero for long runs. Set a larger "
                "total_steps in every parameter group.",
            )

    def _warn_once(self, topic: str, text: str) -> None:
        if self.is_first(topic):
            warn(text)

    def is_first(self, topic: str) -> bool:
        """Whether nothing was said about a topic; from then on something was."""
        is_first = topic not in self._given
        self._given.add(topic)
        return is_first


def _largest(groups: Sequence[Group], *keys: str) -> float:
    """Infinite if reading a value would be a host sync."""
    values = [group[key] for group in groups for key in keys if key in group]
    if any(isinstance(lr, Tensor) and not lr.is_cpu for lr in values):
        return inf
    return max(map(float, values), default=0.0)


def name_of(rule: Any) -> str:
    """The name or path of a rule, its constants that are not the default's, or its
    class."""
    if isinstance(rule, SoapConfig):
        default = SoapConfig()
        values = vars(rule).items()
        changes = [f"{k}={x}" for k, x in values if x != getattr(default, k)]
        return f"SoapConfig({', '.join(changes)})"
    is_named = isinstance(rule, str | os.PathLike)
    return str(rule) if is_named else type(rule).__name__


def describe(
    rule: UpdateRule,
    network: NeuralGraph,
    records: Sequence[Record],
    total_steps: int | None,
) -> str:
    """A network's graph, the metanet of a learned rule, and learned step sizes.

    records: the state of all parameters, in the order of the network.
    """
    step_size = describe_step_size(network, records, total_steps)
    rates = rates_of(rule)
    if rates is not None:
        base, mismatch = description_of(rule), rates.mismatch(network, total_steps)
        step_size = f"step size: learned rates on that of {base}"
        if mismatch:
            step_size = f"step size: that of {base} alone ({mismatch})"
    metanet = ""
    if isinstance(rule, LearnedOptimizer):
        count = sum(p.numel() for p in rule.metanet.parameters())
        metanet = f"metanet: {type(rule.metanet).__name__}, {count:,} parameters"
    return "\n".join(filter(None, (metanet, describe_graph(network), step_size)))


def describe_graph(graph: NeuralGraph) -> str:
    """One line: how many tensors are in the graph, and which are unconnected. These
    are still optimized."""
    names = unconnected(graph)
    count = len(graph.parameters)
    if not names:
        return f"graph: {graph.numel:,} parameters in {count} tensors, all connected"
    listed = names[:LISTED_UNCONNECTED]
    if len(names) > len(listed):
        listed.append("...")
    origin = "graph:"
    if any(graph.inferred):
        origin = "graph inferred from names and shapes;"
    return (
        f"{origin} {len(names)} of {count} tensors are unconnected "
        f"({', '.join(listed)}). They are still optimized."
    )


def describe_step_size(
    network: NeuralGraph, records: Iterable[Record], total_steps: int | None
) -> str:
    """One line about learned factors of the step size; "" if none are learned.

    records: the state of all parameters, in the order of the network. Reading them is a
    host sync.
    """
    factors = []
    for record in records:
        factor = record.get("predicted")
        if factor is not None and not factor.is_meta and float(record["step"]) > 0:
            factors.append(round(float(factor), 2))
    if not factors:
        return ""
    if total_steps is None:
        return "step size: that of the base rule, as total_steps is not given"
    roles = roles_of(network)
    matrices = sum(bool(role.blocks) for role in roles)
    norms = "with" if any(role.role == "norm" for role in roles) else "without"
    reason = f"{matrices} matrices {norms} norms, {total_steps:,} steps"
    if set(factors) == {1.0}:
        return (
            f"step size: that of the base rule ({reason}: unlike the training runs "
            "of the fit, or a gain is uncertain, or a scheduler is used)"
        )
    low, high = min(factors), max(factors)
    interval = f"{low:.2f} to {high:.2f}"
    if low == high:
        interval = f"{low:.2f}"
    elif factors in (sorted(factors), sorted(factors, reverse=True)):
        interval = f"{factors[0]:.2f} (first layer) to {factors[-1]:.2f} (last layer)"
    return (
        f"step size: {interval} times that of the base rule, as predicted from "
        f"{reason}, initial weights and first gradients"
    )


def log_unconnected(
    graph: NeuralGraph, is_exact: bool, reads_connections: bool
) -> None:
    """Logs unconnected parameters, as a warning if the weights read connections.

    is_exact: whether the graph is traced or given.
    """
    if not unconnected(graph):
        return
    level = logging.WARNING if reads_connections else logging.INFO
    advice = "" if is_exact else " Pass model=model to trace the graph."
    if not is_exact and not reads_connections:
        advice = " A graph that is traced, by model=model, lowers losses by 0 to 3 %."
    logger.log(level, "NGOptimizer: %s%s", describe_graph(graph), advice)


def warn_if_partial() -> bool:
    """Whether ZeroRedundancyOptimizer passes a part of the parameters; warns if so."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    if distributed.get_world_size() == 1:
        return False
    callers = traceback.walk_stack(None)  # reads no source lines
    if not any(frame.f_code.co_filename.endswith(ZERO_FILE) for frame, _ in callers):
        return False
    warn(
        "ZeroRedundancyOptimizer passes every process some of the parameters only, so "
        "the graph is partial. For the graph of the whole network pass "
        "functools.partial(NGOptimizer, model=model)."
    )
    return True
