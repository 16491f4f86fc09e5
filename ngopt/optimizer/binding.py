"""The graph and the update rule of an optimizer, made again when they no longer fit."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ngopt.accelerator.soap import AcceleratedSoapRule
from ngopt.devices import product_dtype
from ngopt.distributed.checkpoint import ShardedState
from ngopt.distributed.ownership import Ownership
from ngopt.distributed.shards import Shards
from ngopt.distributed.soap import ShardedSoapRule
from ngopt.functional import Record, UpdateRule, state_dtype, uncompiled
from ngopt.optimizer import param_groups, state_dicts
from ngopt.optimizer.arguments import check_distinct
from ngopt.optimizer.averages import start_or_drop_averages
from ngopt.optimizer.graph_parameters import GraphParameters
from ngopt.optimizer.graph_source import GraphSource
from ngopt.optimizer.log_messages import Messages, log_unconnected, warn_if_partial
from ngopt.optimizer.param_groups import Group, group_tensors
from ngopt.pretrained import LearnedOptimizer
from ngopt.shard_layout import are_divided, local, ranks_of, real


@dataclass(eq=False)
class Binding:
    """Binds a learned optimizer to the graph of an optimizer's parameters.

    source: makes the graph. compute_dtype: of the rule; None: see `NGOptimizer`.
    process_group: of processes that share whole parameters.

    It stores no reference to the optimizer, so that both can be copied.
    """

    source: GraphSource
    _learned: LearnedOptimizer
    _compute_dtype: torch.dtype | None
    _process_group: Any
    _messages: Messages
    _parameters: GraphParameters | None = None
    _rule: UpdateRule | None = None
    _rule_key: Any = None  # the arguments that made it
    _prepared_rule: UpdateRule | None = None  # for which the state is adapted
    _shards: tuple[Sequence[Tensor], Shards] | None = None
    _owned: dict[Tensor, Ownership] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # then unconnected parameters are expected
        self._is_partial = not self.source.is_exact and warn_if_partial()

    def __getstate__(self) -> dict[str, Any]:
        """Without the rule and without process groups, which cannot be copied."""
        keys = "_rule", "_rule_key", "_prepared_rule", "_shards"
        group = {"_process_group": ranks_of(self._process_group)}
        return {**self.__dict__, **dict.fromkeys(keys), **group}

    def parameters(self, optimizer: Optimizer) -> GraphParameters:
        """The parameters in their graph, which is made again if they have changed."""
        params = group_tensors(optimizer.param_groups)
        found = self._parameters
        if found is None or self.source.has_new_inputs or not found.are(params):
            found = self._parameters = self._connected(optimizer)
        return found

    @uncompiled
    def _connected(self, optimizer: Optimizer) -> GraphParameters:
        groups = optimizer.param_groups
        params = group_tensors(groups)
        names = param_groups.group_names(groups)
        check_distinct(zip(names, params, strict=True))
        parameters = GraphParameters(self.source.graph_of(groups), params)
        if self._parameters is not None:
            parameters.check_shapes(self._parameters, optimizer.state)
            self._drop_state_of_other_matrices(parameters, optimizer)
        records = parameters.records(optimizer.state)
        self.check_records(parameters, records, groups[0])
        if not self._is_partial:
            is_default = self._learned.base is not None
            log_unconnected(parameters.network, self.source.is_exact, is_default)
        return parameters

    def _drop_state_of_other_matrices(
        self, parameters: GraphParameters, optimizer: Optimizer
    ) -> None:
        """Drops the state of parameters that the new graph divides into other matrices.

        State of another shape than its parameter is kept; `check_records` raises.
        """
        state = optimizer.state
        rule = self.rule_for_step(parameters, optimizer)
        initial = parameters.initial_records(rule)
        rows = zip(parameters.params, parameters.names(), initial, strict=False)
        dropped = []
        for p, name, expected in rows:
            record = state.get(p)
            shape = real(local(p)).shape
            if record and state_dicts.has_other_matrices(record, expected, shape):
                del state[p]
                dropped.append(name)
        if dropped:
            warnings.warn(
                "NGOptimizer: parameters were added or removed, and the new graph "
                "divides others into other matrices; their state is initialized "
                f"again: {', '.join(dropped)}",
                stacklevel=2,
            )

    def check_records(
        self, parameters: GraphParameters, records: Sequence[Record], settings: Group
    ) -> None:
        """Raises ValueError if a parameter's state does not fit the rule."""
        if not any(records):
            return
        initial = parameters.initial_records(self.rule(parameters, settings))
        # torch raises an error for more records than parameters
        rows = zip(parameters.names(), records, initial, strict=False)
        for name, record, expected in rows:
            if record:
                state_dicts.check_record(name, record, expected, self.source.is_exact)

    def check_loaded(self, state_dict: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Raises ValueError if state that is about to be loaded does not fit."""
        records = state_dicts.records_in_order(state_dict)
        if any(records):
            total_steps = state_dict["param_groups"][0]["total_steps"]
            settings = {**optimizer.param_groups[0], "total_steps": total_steps}
            self.check_records(self.parameters(optimizer), records, settings)

    def rule(self, parameters: GraphParameters, settings: Group) -> UpdateRule:
        """The rule on the graph, on the device of the parameters.

        settings: of any group; those that are read are equal in all groups.
        """
        params = parameters.params
        total_steps = settings["total_steps"]
        renew_every = settings["renew_every"]
        device = params[0].device
        dtype = self._dtype(params)
        shards = self.shards(parameters) if self.is_shared(params) else None
        key = parameters.graph, total_steps, device, dtype, shards, renew_every
        if self._rule is None or self._rule_key != key:
            self._rule = self._bound(
                parameters.graph, total_steps, dtype, renew_every, shards, device
            )
            self._rule_key = key
            if shards is not None:
                self._owned = dict(zip(params, shards.owned, strict=True))
        return self._rule

    def _bound(self, graph, total_steps, dtype, renew_every, shards, device):
        base = self._learned.base
        if base is None:
            return self._learned.bind(graph, total_steps, device=device, dtype=dtype)
        options = {"compute_dtype": dtype, "renew_every": renew_every}
        if shards is not None:
            return ShardedSoapRule(base, graph, total_steps, **options, shards=shards)
        return AcceleratedSoapRule(base, graph, total_steps, **options)

    def _dtype(self, params: Sequence[Tensor]) -> torch.dtype | None:
        """The dtype that the rule computes in; None: the rule's own choice."""
        if self._compute_dtype is not None or self._learned.base is not None:
            return self._compute_dtype
        widest = state_dtype(params[0])
        for p in params:  # torch.compile of 2.6 has no max with a key
            if state_dtype(p).itemsize > widest.itemsize:
                widest = state_dtype(p)
        return product_dtype(params[0].device, widest)

    def rule_for_step(
        self, parameters: GraphParameters, optimizer: Optimizer
    ) -> UpdateRule:
        """The rule; settings and state are adapted to a new one."""
        rule = self.rule(parameters, optimizer.param_groups[0])
        if rule is not self._prepared_rule:
            self._prepare(rule, parameters, optimizer)
        return rule

    @uncompiled
    def _prepare(
        self, rule: UpdateRule, parameters: GraphParameters, optimizer: Optimizer
    ) -> None:
        """Stores the renewal interval in the groups; starts or drops averages."""
        groups = optimizer.param_groups
        state = optimizer.state
        interval = rule.renewal_interval(parameters.params[0].device)
        for group in groups:
            group["renew_every"] = interval
        self._rule_key = (*self._rule_key[:-1], interval)
        total_steps = groups[0]["total_steps"]
        if total_steps is not None and not param_groups.is_scheduled(groups):
            self._messages.check_horizon(parameters.records(state), total_steps)
        start_or_drop_averages(state, parameters, rule)
        self._prepared_rule = rule

    def clear_rule(self) -> None:
        """The next step binds again, as it must after state was loaded."""
        self._rule = None

    def is_shared(self, params: Sequence[Tensor]) -> bool:
        """Whether several processes share the parameters."""
        return self._process_group is not None or are_divided(params)

    @uncompiled
    def shards(self, parameters: GraphParameters) -> Shards:
        """The processes that share the parameters; a collective call."""
        params = parameters.params
        if self._shards is None or self._shards[0] is not params:
            named = list(zip(parameters.names(), params, strict=True))
            shards = Shards(named, self._process_group, self._owned)
            self._shards = params, shards
        return self._shards[1]

    def shared_state(self, optimizer: Optimizer) -> ShardedState:
        """Converts the state of several processes; a collective call."""
        parameters = self.parameters(optimizer)
        rule = self.rule(parameters, optimizer.param_groups[0])
        assert isinstance(rule, ShardedSoapRule)
        params = parameters.params
        layouts = rule.layouts[: len(params)]
        return ShardedState(self.shards(parameters), params, layouts)
