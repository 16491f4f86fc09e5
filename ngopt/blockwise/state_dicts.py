"""Groups and state dicts of a blockwise optimizer, and of those that it is made of."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ngopt.blockwise.parameters import LinkedParameter, State

OF_PARAMETERS = "params", "param_names", "role"
"""Keys of a group that are not settings; the other optimizers have none of them."""
OPTIONS = "blockwise"
"""Key of a state dict for options of the constructor, and for what the other optimizers
store beside the state of parameters and groups."""

Group = dict[str, Any]
StateDict = dict[str, Any]


class GroupLink:
    """A group of the model's parameters, and the group of another optimizer that has
    them or their matrices.

    Attributes:
        parameters: in the order of the first group.
        which: "inner" or "others", the name of the other optimizer.
        number: of the group there.
    """

    def __init__(
        self,
        parameters: Sequence[LinkedParameter],
        which: str,
        optimizer: Optimizer,
        number: int,
    ):
        self.parameters = parameters
        self.which = which
        self.optimizer = optimizer
        self.number = number
        self._exchanged = settings_of(self.inner_group)

    @property
    def inner_group(self) -> Group:
        return self.optimizer.param_groups[self.number]

    def give_settings(self, group: Group) -> None:
        """Gives the other optimizer settings that were changed in `group`; keys of
        schedulers are left out."""
        inner_group = self.inner_group
        for key, value in settings_of(group).items():
            if key in inner_group and value is not self._exchanged.get(key):
                inner_group[key] = value

    def take_settings(self, group: Group) -> None:
        """Gives `group` the settings of the other optimizer."""
        self._exchanged = settings_of(self.inner_group)
        group.update(self._exchanged)

    def states(self, states: Mapping[Any, State]) -> Iterator[State]:
        """What is stored for each parameter. states: by inner parameter."""
        for parameter in self.parameters:
            yield parameter.joined_state([states.get(x, {}) for x in parameter.inner])


def settings_of(group: Group) -> Group:
    return {key: value for key, value in group.items() if key not in OF_PARAMETERS}


def joined(
    groups: Sequence[Group],
    links: Sequence[GroupLink],
    optimizers: Mapping[str, Optimizer],
) -> StateDict:
    """The state dict of a blockwise optimizer. optimizers: by `GroupLink.which`."""
    parts = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    state: dict[int, State] = {}
    packed = []
    first = 0
    for group, link in zip(groups, links, strict=True):
        part, numbers = parts[link.which], _numbers(link.optimizer)
        states = {p: part["state"].get(i, {}) for p, i in numbers.items()}
        keys = range(first, first + len(group["params"]))
        first += len(keys)
        stored = zip(keys, link.states(states), strict=True)
        state |= {key: of_parameter for key, of_parameter in stored if of_parameter}
        of_group = {k: v for k, v in group.items() if k not in link.inner_group}
        settings = settings_of(part["param_groups"][link.number])
        packed.append({**of_group, **settings, "params": list(keys)})
    options = {
        name: {k: v for k, v in part.items() if k not in ("state", "param_groups")}
        for name, part in parts.items()
    }
    return {"state": state, "param_groups": packed, OPTIONS: options}


def part_of(
    state_dict: StateDict, links: Sequence[GroupLink], which: str, optimizer: Optimizer
) -> StateDict:
    """What one of the other optimizers loads.

    Raises ValueError if the state of a parameter does not fit its matrices.
    """
    numbers = _numbers(optimizer)
    state, groups = {}, []
    for saved, link in zip(state_dict["param_groups"], links, strict=True):
        if link.which != which:
            continue
        for parameter, key in zip(link.parameters, saved["params"], strict=True):
            states = parameter.inner_states(state_dict["state"].get(key, {}))
            for p, of_matrix in zip(parameter.inner, states, strict=True):
                if of_matrix:
                    state[numbers[p]] = of_matrix
        inner = [numbers[p] for p in link.inner_group["params"]]
        groups.append({**settings_of(saved), "params": inner})
    options = state_dict.get(OPTIONS, {}).get(which, {})
    return {**options, "state": state, "param_groups": groups}


def _numbers(optimizer: Optimizer) -> dict[Tensor, int]:
    """The keys that torch's state dicts have for parameters."""
    groups = (group["params"] for group in optimizer.param_groups)
    return {p: i for i, p in enumerate(chain.from_iterable(groups))}
