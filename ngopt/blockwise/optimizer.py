"""`BlockwiseOptimizer`: any optimizer on the matrices inside parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ngopt.blockwise.parameters import SplitParameter, State, WholeParameter, is_whole
from ngopt.graph.build import build_graph
from ngopt.graph.summary import table_lines
from ngopt.roles.from_graph import roles_of
from ngopt.roles.from_module import check_module
from ngopt.roles.logical_matrices import MatrixStack, matrices_of_graph
from ngopt.roles.optimizer_groups import groups_by_role

HIDDEN = "matrix", "stack", "convolution"
"""Roles of parameters whose matrices the inner optimizer has."""
OF_PARAMETERS = "params", "param_names", "role"
"""Keys of a group that are not settings; the other optimizers have none of them."""
COPIED = "inner", "others", "_inner", "_others", "_takes_stacks", "_of_model", "_links"
"""Attributes in copies, beside those of torch."""

Group = dict[str, Any]


@dataclass(frozen=True)
class ModelParameter:
    """A parameter of the network. stacks: its matrices if it is hidden."""

    name: str
    stacks: tuple[MatrixStack, ...]


@dataclass(frozen=True)
class GroupLink:
    """The parameters of a group, and the group that another optimizer has of them."""

    parameters: list[WholeParameter | SplitParameter]
    optimizer: Optimizer
    group: int

    @property
    def settings(self) -> Group:
        return _settings(self.optimizer.param_groups[self.group])

    def take_settings(self, group: Group) -> None:
        """Of a group of the model's parameters; keys of schedulers are left out."""
        linked = self.optimizer.param_groups[self.group]
        linked.update({k: v for k, v in _settings(group).items() if k in linked})

    def states(self) -> Iterator[State]:
        """What is stored for each parameter."""
        states = self.optimizer.state
        for parameter in self.parameters:
            yield parameter.joined_state([states.get(x, {}) for x in parameter.inner])


class BlockwiseOptimizer(Optimizer):
    """Any optimizer of matrices on the logical matrices of a network, another one on
    its other parameters.

    The inner optimizer has as parameters the matrices that `ngopt.matrices` finds in
    hidden layers, rows outputs and columns inputs: queries, keys and values apart, both
    factors of a gated unit, experts, kernels as (out, in * positions). They share
    memory with the parameters where strides allow and are copied once a step elsewhere.
    Embeddings, output matrices, norms, biases and others are parameters of the second
    optimizer; the last three with a weight decay of 0.

    `param_groups` has the parameters of the model, one group for each role, with the
    settings of the optimizer that has them; changes of settings, as by a scheduler,
    take effect at the next step. `state_dict` has for each parameter its state, for one
    with several matrices that of each by number. Frozen parameters are left out and can
    be added later by `add_param_group`.

    Args:
        model: Its parameters that need a gradient are optimized.
        example_input: As for `build_graph`; without one (None) names decide.
        inner: A class of optimizers, or a function of groups that returns one.
        inner_options: Keyword arguments of `inner`.
        others: The same of the second optimizer; AdamW if not given. others_options:
            its keyword arguments.
        heads: Number of attention heads in a matrix; all if None. See `matrices`.
        takes_stacks: Whether `inner` takes stacks of matrices, (k, rows, columns). They
            are given one by one if not.

    Attributes:
        inner, others: The optimizers; `others` is None while there are no others.

    DTensors that are one matrix are given as they are. Those with several matrices are
    gathered at each step, and every process has their whole state.

    Raises:
        TypeError: If `model` is no module.
        ValueError: As `build_graph` and `matrices`, and if the model has no hidden
            matrix that needs a gradient.

    Examples:
        >>> optimizer = ngopt.BlockwiseOptimizer(
        ...     model, example_input, torch.optim.Muon, {"lr": 0.02},
        ...     others=torch.optim.AdamW, others_options={"lr": 3e-4},
        ... )
    """

    __module__ = "ngopt"

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        inner: Callable[..., Optimizer],
        inner_options: Mapping[str, Any] | None = None,
        *,
        others: Callable[..., Optimizer] = AdamW,
        others_options: Mapping[str, Any] | None = None,
        heads: int | None = None,
        takes_stacks: bool = False,
    ):
        check_module("BlockwiseOptimizer", model)
        graph = build_graph(model, example_input)
        roles = roles_of(graph)
        stacks = matrices_of_graph(graph, roles, heads)
        groups = groups_by_role(model, roles)
        if not any(group["role"] in HIDDEN for group in groups):
            raise ValueError(
                "BlockwiseOptimizer: expected a model with a hidden matrix that needs "
                f"a gradient; got roles {[group['role'] for group in groups]}. Use the "
                "optimizer for other parameters alone."
            )
        self.inner: Optimizer | None = None
        self.others: Optimizer | None = None
        self._inner = partial(inner, **(inner_options or {}))
        self._others = partial(others, **(others_options or {}))
        self._takes_stacks = takes_stacks
        self._of_model: dict[Tensor, ModelParameter] = {}
        self._links: list[GroupLink] = []
        for role, p in zip(roles, map(model.get_parameter, stacks), strict=True):
            is_hidden = role.role == "matrix"
            matrices = stacks[role.name] if is_hidden else ()
            self._of_model[p] = ModelParameter(role.name, matrices)
        super().__init__(groups, {})
        self.defaults.update(_common_defaults(self.inner, self.others))

    def __getstate__(self) -> dict[str, Any]:
        copied = {name: self.__dict__[name] for name in COPIED}
        return {**super().__getstate__(), **copied}

    def __repr__(self) -> str:
        rows = [("optimizer", "role", "parameters", "matrices", "lr", "weight_decay")]
        for group, link in zip(self.param_groups, self._links, strict=True):
            params = group["params"]
            stacks = chain.from_iterable(self._of_model[p].stacks for p in params)
            matrices = sum(stack.shape[0] for stack in stacks)
            name, role = type(link.optimizer).__name__, group.get("role", "")
            lr, decay = (str(group.get(key, "")) for key in rows[0][-2:])
            rows.append((name, role, str(len(params)), str(matrices or ""), lr, decay))
        lines = table_lines(rows, rows[0][2:])
        return "\n".join([type(self).__name__, *(f"  {line}" for line in lines)])

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """Parameter -> its state, that of several matrices by number."""
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        for group, link in zip(self.param_groups, self._links, strict=True):
            for p, stored in zip(group["params"], link.states(), strict=True):
                if stored:
                    state[p] = stored
        return state

    @state.setter
    def state(self, _: Any) -> None:
        """torch assigns an empty state; it is in the other optimizers."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both optimizers; returns the loss of `closure`, if it is given.

        Parameters without a gradient are not changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        linked = list(zip(self.param_groups, self._links, strict=True))
        for group, link in linked:
            link.take_settings(group)
            for parameter in link.parameters:
                parameter.before_step()
        for optimizer in self._optimizers():
            optimizer.step()
        for group, link in linked:
            for parameter in link.parameters:
                parameter.after_step()
            group.update(link.settings)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Adds parameters of the model, such as those that were frozen.

        Hidden matrices go to the inner optimizer, others to the second; a group of both
        becomes two. Raises ValueError, and changes nothing, for a parameter that is not
        of the model or is in a group already.
        """
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        params = [x[1] if isinstance(x, tuple) else x for x in params]
        self._check_new(params)
        for is_inner in (True, False):
            chosen = [p for p in params if bool(self._of_model[p].stacks) == is_inner]
            if chosen:
                self._add({**param_group, "params": chosen}, is_inner)

    def _check_new(self, params: Sequence[Tensor]) -> None:
        present = set(chain.from_iterable(g["params"] for g in self.param_groups))
        for i, p in enumerate(params):
            if p not in self._of_model:
                raise ValueError(
                    f"BlockwiseOptimizer.add_param_group: parameter {i} of shape "
                    f"{tuple(p.shape)}: expected one of the model; make another "
                    "BlockwiseOptimizer for a new module."
                )
            if p in present or any(p is q for q in params[:i]):
                raise ValueError(
                    f"BlockwiseOptimizer.add_param_group: '{self._of_model[p].name}': "
                    "expected a parameter that is in no group; it is in one already."
                )

    def _add(self, group: Group, is_inner: bool) -> None:
        """Adds a group to one of the optimizers, which is made with its first group."""
        params = group["params"]
        parameters = [self._parameter(p) for p in params]
        names = [self._of_model[p].name for p in params]
        inner = list(chain.from_iterable(parameter.inner for parameter in parameters))
        inner_group = {"params": inner, **_settings(group)}
        optimizer = self.inner if is_inner else self.others
        if optimizer is not None:
            optimizer.add_param_group(inner_group)
        elif is_inner:
            optimizer = self.inner = self._inner([inner_group])
        else:
            optimizer = self.others = self._others([inner_group])
        link = GroupLink(parameters, optimizer, len(optimizer.param_groups) - 1)
        self._links.append(link)
        super().add_param_group({**group, "param_names": names, **link.settings})

    def _parameter(self, p: Tensor) -> WholeParameter | SplitParameter:
        of_model = self._of_model[p]
        if is_whole(p, of_model.stacks):
            return WholeParameter(p)
        return SplitParameter(of_model.name, p, of_model.stacks, self._takes_stacks)

    def _optimizers(self) -> list[Optimizer]:
        return [x for x in (self.inner, self.others) if x is not None]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, through both optimizers.

        Raises ValueError, and changes nothing, if groups or matrices do not fit.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved = state_dict["param_groups"]
        lengths = [len(group["params"]) for group in saved]
        expected = [len(group["params"]) for group in self.param_groups]
        if lengths != expected:
            raise ValueError(
                "BlockwiseOptimizer.load_state_dict: expected groups of "
                f"{expected} parameters; got {lengths}"
            )
        loaded = [
            (optimizer, self._state_dict_of(optimizer, saved, state_dict["state"]))
            for optimizer in self._optimizers()
        ]
        for optimizer, part in loaded:
            optimizer.load_state_dict(part)
        for group, link in zip(self.param_groups, self._links, strict=True):
            group.update(link.settings)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _state_dict_of(
        self, optimizer: Optimizer, saved: Sequence[Group], states: State
    ) -> dict[str, Any]:
        """What another optimizer loads. saved: groups of all parameters."""
        part: dict[str, Any] = {"state": {}, "param_groups": []}
        count = 0
        for group, link in zip(saved, self._links, strict=True):
            if link.optimizer is not optimizer:
                continue
            first = count
            for parameter, key in zip(link.parameters, group["params"], strict=True):
                inner_states = parameter.inner_states(states.get(key, {}))
                numbered = enumerate(inner_states, count)
                part["state"] |= {i: state for i, state in numbered if state}
                count += len(parameter.inner)
            numbers = list(range(first, count))
            part["param_groups"].append({**_settings(group), "params": numbers})
        return part


def _settings(group: Group) -> Group:
    return {key: value for key, value in group.items() if key not in OF_PARAMETERS}


def _common_defaults(*optimizers: Optimizer | None) -> dict[str, Any]:
    """The defaults of the first optimizer that the others have, too."""
    first, *rest = (x.defaults for x in optimizers if x is not None)
    return {k: v for k, v in first.items() if all(k in other for other in rest)}
