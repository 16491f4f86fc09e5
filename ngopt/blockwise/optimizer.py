"""`BlockwiseOptimizer`: any optimizer on the matrices inside parameters."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import AdamW, Optimizer

from ngopt.blockwise.parameters import LinkedParameter, SplitParameter, is_whole
from ngopt.blockwise.state_dicts import (
    OPTIONS,
    Group,
    GroupLink,
    StateDict,
    joined,
    part_of,
    settings_of,
)
from ngopt.graph.build import build_graph
from ngopt.graph.summary import table_lines
from ngopt.roles.from_graph import check_module, roles_of
from ngopt.roles.logical_matrices import MatrixStack, matrices_of_graph
from ngopt.roles.optimizer_groups import KINDS, UNDECAYED, kind_of

HIDDEN = "matrix", "stack", "convolution"
"""Roles of parameters whose matrices the inner optimizer has."""
COPIED = "inner", "others", "_make", "_options", "_of_model", "_links"
"""Attributes in copies, beside those of torch."""


@dataclass(frozen=True)
class ModelParameter:
    """A parameter of the network. role: one of `KINDS`. stacks: its matrices if it is
    hidden."""

    name: str
    role: str
    stacks: tuple[MatrixStack, ...]


class BlockwiseOptimizer(Optimizer):
    """Any optimizer of matrices on the logical matrices of a network, another one on
    its other parameters.

    The inner optimizer has as parameters the matrices that `ngopt.matrices` finds in
    hidden layers, rows outputs and columns inputs: queries, keys and values apart, both
    factors of a gated unit, experts, kernels as (out, in * positions). They share
    memory with the parameters where strides allow and are copied once a step elsewhere.
    Embeddings, output matrices, norms, biases and others are parameters of the second
    optimizer; the last three with a weight decay of 0.

    `param_groups` has the parameters of the model, a group for each role ("role"), with
    the settings of the optimizer that has them; changes, as by a scheduler, take effect
    at the next step. `state_dict` has for each parameter its state, for one with
    several matrices that of each by number; `state` is the same, to be read. Frozen
    parameters are left out and can be added later by `add_param_group`.

    Args:
        model: Its parameters that need a gradient are optimized.
        example_input: As for `build_graph`; without one (None) names decide.
        inner: A class of optimizers, or a function of groups that returns one. It is
            called with the first group; `add_param_group` adds the others.
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

    An inner optimizer that changes parameters outside of `step`, as by `eval()`, only
    reaches matrices that share memory with them.

    Raises:
        TypeError: If `model` is no module, `inner` or `others` no class or function.
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
        if isinstance(example_input, type):
            raise TypeError(
                "BlockwiseOptimizer: example_input: expected an input of the model, or "
                f"None; got the class {example_input.__name__}"
            )
        self._make = {
            "inner": _maker("inner", inner, inner_options),
            "others": _maker("others", others, others_options),
        }
        self._options = {"heads": heads, "takes_stacks": takes_stacks}
        self._of_model = _parameters_of(model, example_input, heads)
        trained = [p for p in self._of_model if p.requires_grad]
        roles = {self._of_model[p].role for p in trained}
        if roles.isdisjoint(HIDDEN):
            raise ValueError(
                "BlockwiseOptimizer: expected a model with a hidden matrix that needs "
                f"a gradient; got roles {sorted(roles)}. Use the optimizer for other "
                "parameters alone."
            )
        self.inner: Optimizer | None = None
        self.others: Optimizer | None = None
        self._links: list[GroupLink] = []
        super().__init__(trained, {})
        self.defaults.update(_defaults(self._optimizers()))

    def __getstate__(self) -> dict[str, Any]:
        copied = {name: self.__dict__[name] for name in COPIED}
        return {**super().__getstate__(), **copied}

    def __repr__(self) -> str:
        rows = [("optimizer", "role", "parameters", "matrices", "lr", "weight_decay")]
        for group, link in zip(self.param_groups, self._links, strict=True):
            params = group["params"]
            stacks = chain.from_iterable(self._of_model[p].stacks for p in params)
            matrices = sum(stack.shape[0] for stack in stacks)
            name, role = type(link.optimizer).__name__, group["role"]
            lr, decay = (str(group.get(key, "")) for key in rows[0][-2:])
            rows.append((name, role, str(len(params)), str(matrices or ""), lr, decay))
        lines = table_lines(rows, rows[0][2:])
        return "\n".join([type(self).__name__, *(f"  {line}" for line in lines)])

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """Parameter -> its state, that of several matrices by number."""
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        for group, link in zip(self.param_groups, self._links, strict=True):
            states = link.states(link.optimizer.state)
            for p, stored in zip(group["params"], states, strict=True):
                if stored:
                    state[p] = stored
        return state

    @state.setter
    def state(self, _: Any) -> None:
        """torch assigns an empty state; it is in the other optimizers."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both optimizers; returns the loss of `closure`, which is called
        once, if it is given.

        Parameters without a gradient are not changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        linked = list(zip(self.param_groups, self._links, strict=True))
        for group, link in linked:
            link.give_settings(group)
            for parameter in link.parameters:
                parameter.before_step()
        for optimizer in self._optimizers().values():
            optimizer.step()
        for group, link in linked:
            for parameter in link.parameters:
                parameter.after_step()
            link.take_settings(group)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Adds parameters of the model, such as those that were frozen; each role
        becomes a group, norms, biases and others with a weight decay of 0 if the group
        has none.

        Raises ValueError, and changes nothing, for a parameter that is not of the model
        or is in a group already, and TypeError for a set.
        """
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(
                "BlockwiseOptimizer.add_param_group: expected a list of parameters; "
                "got a set, whose order changes between runs"
            )
        params = [params] if isinstance(params, Tensor) else list(params)
        params = [x[1] if isinstance(x, tuple) else x for x in params]
        self._check_new(params)
        for role in KINDS:
            chosen = [p for p in params if self._of_model[p].role == role]
            if chosen:
                decay = {"weight_decay": 0.0} if role in UNDECAYED else {}
                self._add({**decay, **param_group, "params": chosen, "role": role})

    def _check_new(self, params: Sequence[Any]) -> None:
        present = set(chain.from_iterable(g["params"] for g in self.param_groups))
        for i, p in enumerate(params):
            if not isinstance(p, Tensor) or p not in self._of_model:
                got = f"shape {tuple(p.shape)}" if isinstance(p, Tensor) else repr(p)
                raise ValueError(
                    "BlockwiseOptimizer.add_param_group: expected parameters of the "
                    f"model; got {got} (number {i}). Make another BlockwiseOptimizer "
                    "for a new module."
                )
            if p in present:
                raise ValueError(
                    f"BlockwiseOptimizer.add_param_group: '{self._of_model[p].name}': "
                    "expected a parameter once; it is in a group already."
                )
            present.add(p)

    def _add(self, group: Group) -> None:
        """Adds a group of one role to the optimizer for it, which is made with its
        first group."""
        which = "inner" if group["role"] in HIDDEN else "others"
        parameters = [self._parameter(p) for p in group["params"]]
        inner = list(chain.from_iterable(parameter.inner for parameter in parameters))
        inner_group = {"params": inner, **settings_of(group)}
        optimizer = getattr(self, which)
        if optimizer is None:
            optimizer = self._make[which]([inner_group])
            count = len(getattr(optimizer, "param_groups", ()))
            if count != 1:
                raise ValueError(
                    f"BlockwiseOptimizer: {which}: expected an optimizer that keeps "
                    f"its group; got {count} groups of {type(optimizer).__name__}"
                )
            setattr(self, which, optimizer)
        else:
            optimizer.add_param_group(inner_group)
        number = len(optimizer.param_groups) - 1
        link = GroupLink(parameters, which, optimizer, number)
        self._links.append(link)
        names = [self._of_model[p].name for p in group["params"]]
        group = {**group, **settings_of(link.inner_group), "param_names": names}
        super().add_param_group(group)

    def _parameter(self, p: Tensor) -> LinkedParameter:
        of_model = self._of_model[p]
        if is_whole(p, of_model.stacks):
            return LinkedParameter(p)
        takes_stacks = bool(self._options["takes_stacks"])
        return SplitParameter(of_model.name, p, of_model.stacks, takes_stacks)

    def _optimizers(self) -> dict[str, Optimizer]:
        optimizers = {"inner": self.inner, "others": self.others}
        return {name: x for name, x in optimizers.items() if x is not None}

    def state_dict(self) -> StateDict:
        """As of `torch.optim.Optimizer`; see the class for the state of a parameter.

        Key "blockwise" has `heads` and `takes_stacks`, and what the other optimizers
        store beside the state of parameters and groups.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = joined(self.param_groups, self._links, self._optimizers())
        state_dict[OPTIONS] |= self._options
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads what `state_dict` returned, through both optimizers.

        Raises ValueError, and changes nothing, if groups or matrices do not fit.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self._check_loaded(state_dict)
        parts = {
            which: part_of(state_dict, self._links, which, optimizer)
            for which, optimizer in self._optimizers().items()
        }
        for link in self._links:  # the type and the device of states follow theirs
            for parameter in link.parameters:
                parameter.refresh()
        for which, optimizer in self._optimizers().items():
            optimizer.load_state_dict(parts[which])
        saved_groups = state_dict["param_groups"]
        for group, saved, link in zip(
            self.param_groups, saved_groups, self._links, strict=True
        ):
            group.update(settings_of(saved))
            link.take_settings(group)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _check_loaded(self, state_dict: StateDict) -> None:
        lengths = [len(group["params"]) for group in state_dict["param_groups"]]
        expected = [len(group["params"]) for group in self.param_groups]
        if lengths != expected:
            raise ValueError(
                "BlockwiseOptimizer.load_state_dict: expected groups of "
                f"{expected} parameters; got {lengths}"
            )
        saved = state_dict.get(OPTIONS, {})
        for name, value in self._options.items():
            if saved.get(name, value) != value:
                raise ValueError(
                    f"BlockwiseOptimizer.load_state_dict: {name}: expected {value!r}; "
                    f"the state was saved with {saved[name]!r}"
                )


def _parameters_of(
    model: nn.Module, example_input: Any, heads: int | None
) -> dict[Tensor, ModelParameter]:
    """The parameters of a model, tied ones once; see `BlockwiseOptimizer`."""
    graph = build_graph(model, example_input)
    roles = roles_of(graph)
    stacks = matrices_of_graph(graph, roles, heads)
    parameters = {}
    for role in roles:
        p = model.get_parameter(role.name)
        if is_lazy(p):
            raise ValueError(
                f"BlockwiseOptimizer: '{role.name}': expected a parameter with a "
                "shape; got one of a lazy module. Call the model once before."
            )
        kind = kind_of(role, p)
        matrices = stacks[role.name] if kind in HIDDEN else ()
        parameters[p] = ModelParameter(role.name, kind, matrices)
    return parameters


def _maker(
    name: str, optimizer: Any, options: Mapping[str, Any] | None
) -> Callable[..., Any]:
    """Makes an optimizer of groups. Raises TypeError if it cannot."""
    if not callable(optimizer):
        raise TypeError(
            f"BlockwiseOptimizer: {name}: expected a class of optimizers, or a "
            f"function of groups; got {type(optimizer).__name__}"
        )
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"BlockwiseOptimizer: {name}_options: expected a dict such as "
            f"{{'lr': 0.02}}; got {options!r}"
        )
    return partial(optimizer, **(options or {}))


def _defaults(optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """Of both optimizers; schedulers that cycle momentum read "betas" of all groups."""
    defaults = [optimizer.defaults for optimizer in optimizers.values()]
    joint = {key: value for x in reversed(defaults) for key, value in x.items()}
    if not all("betas" in x for x in defaults):
        joint.pop("betas", None)
    return joint
