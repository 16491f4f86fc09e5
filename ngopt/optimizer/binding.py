"""The parameters of an optimizer, bound to their graph and to an update rule.

`Binding.for_step` checks once a step whether what was bound still fits the parameter
groups; `BoundParameters` are what it checks, and make the step.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ngopt import functional
from ngopt.devices import product_dtype
from ngopt.distributed.ownership import Ownership
from ngopt.distributed.shards import Shards
from ngopt.functional import BoundRule, Gradients, Hyper, Record, SharedState, State
from ngopt.graph.transforms import reordered
from ngopt.optimizer import param_groups, state_dicts
from ngopt.optimizer.averages import start_or_drop_averages
from ngopt.optimizer.execution import Settings, bound_rule
from ngopt.optimizer.graph_source import GraphSource, OrderedGraph
from ngopt.optimizer.learning_rates import BY_LR_AFTER_WARM_UP, ratio
from ngopt.optimizer.log_messages import Messages, log_unconnected, warn_if_partial
from ngopt.optimizer.moved_state import adapt_state
from ngopt.optimizer.param_groups import BUILT_IN, Group, group_tensors
from ngopt.packing import ParameterState
from ngopt.shard_layout import are_divided, local, local_gradient, ranks_of, real


class BoundParameters:
    """Parameters with their graph and, from the first step on, the rule on it.

    Attributes:
        params: in the order of the groups.
        network: the graph, its parameters in the network's order.
        graph: the same with `params` first, as rules need it; parameters after these
            are not optimized.
        shards: the processes that share the parameters; None until they are needed.
        rule, settings: the rule of the last step, and what it was bound with.
    """

    def __init__(self, ordered: OrderedGraph, params: Sequence[Tensor]):
        self.network, self._order = ordered
        self.graph = reordered(self.network, self._order)
        self.params = params
        self._shapes = [p.shape for p in params]
        # whether gradients and values of all parameters are what a rule reads
        is_other = any(p.is_complex() or p.numel() == 0 for p in params)
        self._is_plain = not is_other and not are_divided(params)
        self._plain_values: list[Tensor] | None = None
        self.shards: Shards | None = None
        self.rule: BoundRule | None = None
        self.settings: Settings | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the rule and without process groups, which cannot be copied."""
        return {**self.__dict__, "shards": None, "rule": None, "settings": None}

    def set_rule(self, rule: BoundRule, settings: Settings) -> None:
        self.rule, self.settings = rule, settings
        self._plain_values = self._values() if self._is_plain else None

    def matches(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors in the same shapes."""
        if len(params) != len(self.params):
            return False
        for p, bound, shape in zip(params, self.params, self._shapes, strict=True):
            if p is not bound or p.shape != shape:
                return False
        return True

    def names(self) -> list[str]:
        return [spec.name for spec in self.graph.parameters[: len(self.params)]]

    def check_shapes(self, before: "BoundParameters", state: State) -> None:
        """Raises ValueError if the shape of a parameter with a state has changed."""
        shapes = dict(zip(map(id, before.params), before._shapes, strict=True))
        for p, name in zip(self.params, self.names(), strict=True):
            shape = shapes.get(id(p), p.shape)
            if shape != p.shape and state.get(p):
                raise ValueError(
                    f"NGOptimizer: '{name}': expected shape {tuple(shape)}, as in "
                    f"earlier steps; got {tuple(p.shape)}. Delete its state, `del "
                    "optimizer.state[parameter]`, or make a new optimizer."
                )

    def records(self, state: State) -> list[Record]:
        """The state of all parameters in the graph, empty where there is none."""
        records = [state.get(p) or {} for p in self.params]
        others = len(self.graph.parameters) - len(records)
        return records + [{}] * others

    def records_in_network(self, state: State) -> list[Record]:
        """The same in the order of `network.parameters`."""
        by_position = dict(zip(self._order, self.records(state), strict=True))
        return [by_position[i] for i in range(len(by_position))]

    def initial_records(
        self, rule: BoundRule, values: Mapping[int, Tensor] | None = None
    ) -> list[Record]:
        """The initial state of all parameters, on the meta device by default.

        values: of parameters, by position, whose initial state takes memory.
        """
        shapes = [real(local(p)).shape for p in self.params]
        shapes += [spec.shape for spec in self.graph.parameters[len(shapes) :]]
        params = [torch.empty(shape, device="meta") for shape in shapes]
        for i, value in (values or {}).items():
            params[i] = value
        return rule.init(params)

    def gradients(self, groups: Sequence[Group]) -> tuple[list[Tensor | None], Hyper]:
        """Gradients, None of parameters that are absent from the step, and settings.

        Raises ValueError if a gradient is sparse.
        """
        count = len(self.graph.parameters)
        grads: list[Tensor | None] = [None] * count
        lr: list[float | Tensor] = [0.0] * count
        weight_decay: list[float | None] = [0.0] * count
        position = 0
        for group in groups:
            group_lr = ratio(group)
            for p in group["params"]:
                grad = p.grad if self._is_plain else local_gradient(p)
                if grad is not None and (self._is_plain or p.numel()):
                    if grad.is_sparse or group["maximize"] or not self._is_plain:
                        grad = self._gradient(position, grad, group["maximize"])
                    grads[position] = grad
                    lr[position] = group_lr
                    weight_decay[position] = group["weight_decay"]
                position += 1
        schedule = groups[0]["lr_schedule"]
        is_scheduled, warms_up = schedule != BUILT_IN, schedule == BY_LR_AFTER_WARM_UP
        return grads, Hyper(lr, weight_decay, is_scheduled, warms_up)

    def _gradient(self, position: int, grad: Tensor, maximize: bool) -> Tensor:
        """A dense real gradient to descend along."""
        if grad.is_sparse:
            name = self.graph.parameters[position].name
            raise ValueError(
                f"NGOptimizer: '{name}': expected a dense gradient; got a sparse "
                "gradient. Make the layer without sparse=True, or pass this parameter "
                "to torch.optim.SparseAdam."
            )
        if grad.is_complex():
            grad = real(grad.resolve_conj())
        return -grad if maximize else grad

    def _values(self) -> list[Tensor]:
        """Real values of all parameters in the graph.

        Zeros, which take no memory, of those that are not optimized.
        """
        values = list(self.params)
        if not self._is_plain:
            values = [real(local(p)) for p in self.params]
        like = self.params[0]
        dtype = functional.state_dtype(like)
        for spec in self.graph.parameters[len(values) :]:
            zero = torch.zeros((), dtype=dtype, device=like.device)
            values.append(zero.expand(spec.shape))
        return values

    def records_for_step(self, state: State, grads: Gradients) -> list[Record]:
        """The state of all parameters in the graph, initialized for parameters with a
        first gradient."""
        records = self.records(state)
        first_values: dict[int, Tensor] = {}
        for i, p in enumerate(self.params):
            if grads[i] is not None and not records[i]:
                first_values[i] = real(local(p))
        if first_values:
            assert self.rule is not None
            initial = self.initial_records(self.rule, first_values)
            for i in first_values:
                # the initial dict is dropped, so that nothing else keeps its tensors
                records[i] = state[self.params[i]] = ParameterState(initial[i])
        return records

    def update(self, state: State, grads: Gradients, hyper: Hyper) -> None:
        """One step, which changes parameters and state in place."""
        assert self.rule is not None
        is_compiling = torch.compiler.is_dynamo_compiling()
        if is_compiling and not self.rule.may_be_traced(grads, self.records(state)):
            return self._update_uncompiled(state, grads, hyper)
        records = self.records_for_step(state, grads)
        params = self._plain_values or self._values()
        for changes in self.rule.update(grads, records, params, hyper, in_place=True):
            functional.apply(changes, params)
            for position, record in [(c.position, c.record) for c in changes]:
                if records[position] is not record:
                    state[self.params[position]].update(record)
            changes.clear()  # frees their memory before the next ones are made
        return None

    _update_uncompiled = functional.uncompiled(update)


class Binding:
    """Binds a rule to the graph of an optimizer's parameters.

    source: makes the graph. compute_dtype: of the rule; None: see `NGOptimizer`.
    process_group: of processes that share whole parameters.

    It stores no reference to the optimizer, so that both can be copied.
    """

    def __init__(
        self,
        source: GraphSource,
        rule: functional.UpdateRule,
        compute_dtype: torch.dtype | None,
        process_group: Any,
        messages: Messages,
    ):
        self.source = source
        self._rule = rule
        self._compute_dtype = compute_dtype
        self._follows_state = compute_dtype is None and not rule.chooses_dtype
        self._process_group = process_group
        self._messages = messages
        # then unconnected parameters are expected
        self._is_partial = not source.is_exact and warn_if_partial()
        self._bound: BoundParameters | None = None
        self.expects_moved_state = False  # as of `NGOptimizer.select_rows`
        self._owners: dict[Tensor, Ownership] = {}  # of parameters that have a state

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process_group": ranks_of(self._process_group)}

    def for_step(
        self, optimizer: Optimizer, params: Sequence[Tensor]
    ) -> BoundParameters:
        """The parameters with the rule for the next step; params: of the optimizer.

        Graph and rule are made again if they no longer fit the groups.
        """
        settings = self._settings(params, optimizer.param_groups[0])
        bound = self._bound
        if (
            bound is None
            or bound.settings != settings
            or self.source.has_new_inputs
            or not bound.matches(params)
        ):
            bound = self._bind_again(optimizer)
        if self.source.recorder is not None:
            self.source.stop_recording()
        return bound

    def _settings(self, params: Sequence[Tensor], group: Group) -> Settings:
        """group: any; the settings that are read are equal in all groups."""
        dtype = self._compute_dtype
        if self._follows_state:
            widest = functional.state_dtype(params[0])
            for p in params:  # torch.compile of 2.6 has no max with a key
                if functional.state_dtype(p).itemsize > widest.itemsize:
                    widest = functional.state_dtype(p)
            dtype = product_dtype(params[0].device, widest)
        return Settings(
            group["total_steps"],
            group["precondition_frequency"],
            group["factor_rows"],
            params[0].device,
            dtype,
        )

    @functional.uncompiled
    def _bind_again(self, optimizer: Optimizer) -> BoundParameters:
        bound = self.parameters(optimizer)
        settings = self._settings(bound.params, optimizer.param_groups[0])
        before = bound.settings
        if before is not None and before.factor_rows != settings.factor_rows:
            raise ValueError(
                f"NGOptimizer: factor_rows: expected {before.factor_rows}, as in the "
                f"state; got {settings.factor_rows}. Set it before the first step."
            )
        if before != settings:
            self._set_rule(bound, optimizer)
        return bound

    def parameters(self, optimizer: Optimizer) -> BoundParameters:
        """The parameters in their graph, which is made again if they have changed.

        The rule may be an earlier one, or None.
        """
        params = group_tensors(optimizer.param_groups)
        bound = self._bound
        if bound is None or self.source.has_new_inputs or not bound.matches(params):
            bound = self._bound = self._connected(params, optimizer)
        return bound

    @functional.uncompiled
    def _connected(
        self, params: Sequence[Tensor], optimizer: Optimizer
    ) -> BoundParameters:
        groups = optimizer.param_groups
        names = param_groups.group_names(groups)
        param_groups.check_distinct(zip(names, params, strict=True))
        ordered = self.source.graph_of(groups)
        bound = BoundParameters(ordered, params)
        if self._bound is not None:
            bound.check_shapes(self._bound, optimizer.state)
            rule = self._set_rule(bound, optimizer)
            adapt_state(
                optimizer.state,
                dict(zip(bound.names(), params, strict=True)),
                set(self._bound.params),
                partial(bound.initial_records, rule),
                self.expects_moved_state,
            )
            self.expects_moved_state = False
        self._check_records(bound, bound.records(optimizer.state), groups[0])
        if not self._is_partial:
            reads_connections = self._rule.reads_connections
            log_unconnected(bound.network, self.source.is_exact, reads_connections)
        return bound

    def _set_rule(self, bound: BoundParameters, optimizer: Optimizer) -> BoundRule:
        """Binds a new rule, and adapts groups and state to it.

        Stores what the rule has chosen in the groups; starts or drops averages.
        """
        groups = optimizer.param_groups
        rule = self._new_rule(bound, groups[0])
        for group in groups:
            group.update(rule.choices(bound.params[0].device))
        total_steps = groups[0]["total_steps"]
        if total_steps is not None and groups[0]["lr_schedule"] == BUILT_IN:
            records = bound.records(optimizer.state)
            self._messages.check_horizon(records, total_steps)
        initial = bound.initial_records(rule)
        start_or_drop_averages(optimizer.state, bound.params, initial)
        bound.set_rule(rule, self._settings(bound.params, groups[0]))
        return rule

    def _new_rule(self, bound: BoundParameters, group: Group) -> BoundRule:
        """The learned optimizer as a rule on the graph; collective for several
        processes."""
        if bound.shards is None and self.is_shared(bound.params):
            named = list(zip(bound.names(), bound.params, strict=True))
            bound.shards = Shards(named, self._process_group, self._owners)
        settings = self._settings(bound.params, group)
        rule = bound_rule(self._rule, bound.graph, bound.params, settings, bound.shards)
        if bound.shards is not None:
            self._owners = dict(zip(bound.params, bound.shards.ownerships, strict=True))
        return rule

    def _rule_with(self, bound: BoundParameters, group: Group) -> BoundRule:
        """A rule with the settings of a group, without an effect on the next step."""
        if bound.rule is None or bound.settings != self._settings(bound.params, group):
            return self._new_rule(bound, group)
        return bound.rule

    def clear_rule(self) -> None:
        """The next step binds again, as it must after state was loaded."""
        if self._bound is not None:
            self._bound.rule = self._bound.settings = None

    def _check_records(
        self, bound: BoundParameters, records: Sequence[Record], group: Group
    ) -> None:
        """Raises ValueError if a parameter's state does not fit the rule."""
        if not any(records):
            return
        initial = bound.initial_records(self._rule_with(bound, group))
        is_exact = self.source.is_exact
        state_dicts.check_records(bound.names(), records, initial, is_exact)

    def check_loaded(self, state_dict: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Raises ValueError if state that is about to be loaded does not fit."""
        records = state_dicts.records_in_order(state_dict)
        if any(records):
            saved, present = state_dict["param_groups"][0], optimizer.param_groups[0]
            group = state_dicts.group_of_state(saved, present)
            self._check_records(self.parameters(optimizer), records, group)

    def is_shared(self, params: Sequence[Tensor]) -> bool:
        """Whether several processes share the parameters."""
        return self._process_group is not None or are_divided(params)

    def shared_state(
        self, optimizer: Optimizer, groups: Sequence[Group]
    ) -> SharedState:
        """Converts the state of several processes; a collective call.

        groups: with which the state was made.
        """
        bound = self.parameters(optimizer)
        group = state_dicts.group_of_state(groups[0], optimizer.param_groups[0])
        rule = self._rule_with(bound, group)
        return rule.shared_state(bound.params)
