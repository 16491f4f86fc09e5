"""NGOptimizer: the learned optimizer as a `torch.optim.Optimizer`.

The class holds parameters and state; what a step computes is the `update` of an
`UpdateRule`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ngopt.base.checkpoint import SharedState
from ngopt.base.soap import SoapRule
from ngopt.devices import product_dtype
from ngopt.distributed.ownership import Ownership
from ngopt.distributed.shards import Shards
from ngopt.functional import (
    AVERAGE,
    Hyper,
    Record,
    UpdateRule,
    apply,
    as_average,
    state_dtype,
    uncompiled,
)
from ngopt.graph import NeuralGraph
from ngopt.graph.sharding import check_no_pieces, check_whole
from ngopt.graph.topology import unconnected
from ngopt.metanets import Metanet
from ngopt.optimizer.arguments import (
    check_compute_dtype,
    check_distinct,
    check_groups,
    check_keys,
    check_no_module,
    check_process_group,
    check_settings,
    is_scheduled,
    named_members,
    plain,
    with_own_decay,
)
from ngopt.optimizer.graph_wiring import (
    Given,
    Inferred,
    Source,
    Traced,
    describe,
    group_names,
    group_tensors,
    without_autocast,
)
from ngopt.optimizer.log_messages import Notices
from ngopt.optimizer.param_groups import Members, is_lazy
from ngopt.optimizer.state_dicts import (
    as_dict,
    check_record,
    checked,
    in_order,
    is_of_other_matrices,
    numbered,
    records_in_order,
    restore_dtypes,
)
from ngopt.pretrained import are_named, as_learned, weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.shard_layout import are_divided, local, real

logger = logging.getLogger("ngopt")

ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
SOME = (
    "ZeroRedundancyOptimizer gives every process some of the parameters, and the graph shows these "
    "alone; with functools.partial(NGOptimizer, model=model) it shows the whole network"
)


class NGOptimizer(Optimizer):
    """A learned optimizer that sees the network as a graph; it needs no learning rate.

    Args:
        params: tensors, (name, tensor) pairs or parameter groups, as for every torch
        optimizer.
        lr: multiplies the update. A scheduler of torch that is attached replaces the
        schedule of
            the weights; those that cycle momentum need cycle_momentum=False.
            ReduceLROnPlateau, which is no schedule, multiplies it. Per group.
        weight_decay: decoupled, in AdamW's units: each step multiplies the weights by
            1 - lr * s * weight_decay, where s is the nominal step of the weights, 1e-3,
            times their schedule, if they have one. None: the default decays its
            matrices and tables by .45; rows without a gradient shrink by 16 to 19 % in
            1,000 steps. 0: no decay. Per group; groups store None as the number and
            `own_weight_decay=True`.
        model: the module that the parameters belong to. Its first training forward
        shows the
            inputs, from which the graph is traced before the first step. Parameters of
            it that are not optimized stay in the graph, as edges without features and
            update.
        graph: a graph made by `build_graph` for these parameters, instead of `model`.
        Named
            parameters are found in it by name, others by their order.
        weights: the name of bundled weights, a weights file, a `LearnedOptimizer` or a
        metanet.
        total_steps: the number of steps that will be made, where it is known: the step
        size then
            comes down to zero. Without it, `averaged` and `load_average` have the same
            effect. The paper's metanets do not know it; weights of them may say how
            their updates cool down (`ngopt.metanets.stepping.cooldown.Cooldown`).
        maximize: go up instead of down. Per group.
        compute_dtype: what is computed in: by a metanet, where it is the dtype of the
        state unless
            given, and by the default in rotations, where it is that dtype on CPUs and
            bfloat16 on accelerators. State stays float32.
        renew_every: steps in which the default renews every eigenbasis once. By default
        it depends
            on the device, and is stored with the state, so that training goes on alike
            elsewhere (`ngopt.base.eigenbasis.renewal_interval`).
        process_group: processes that have equal gradients, as under
        DistributedDataParallel: they
            divide the work and the state of the default among themselves. Parameters
            that `fully_shard` or `parallelize_module` made, DTensors, are divided
            without it.

    `graph` is what the optimizer sees, and `repr` says in one line how much of it is
    connected.

    The default is SOAP with one setting (`ngopt.base.soap`): with total_steps the step
    size rises over 8 % of the steps and then falls to zero, and every step is a share
    of the weights' size.

    A parameter without a gradient is left out of a step: no update, its state stands
    still. State is, per parameter, the record of the rule that the weights stand for,
    in float32 (of the default, preconditioners of more than 512 rows in bfloat16), or
    float64 for float64 parameters. A complex parameter is optimized, and its state
    kept, as pairs of real numbers.

    Raises ValueError if there are no parameters, an argument is out of range, the
    weights cannot be loaded, the graph does not fit, or FullyShardedDataParallel has
    made flat pieces of the parameters, and TypeError for a module in place of
    parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor]
        | Iterable[tuple[str, Tensor]]
        | Iterable[dict[str, Any]],
        lr: float | Tensor = 1.0,
        weight_decay: float | None = None,
        *,
        model: nn.Module | None = None,
        graph: NeuralGraph | None = None,
        weights: str | os.PathLike | Metanet | LearnedOptimizer = "default",
        total_steps: int | None = None,
        maximize: bool = False,
        compute_dtype: torch.dtype | None = None,
        renew_every: int | None = None,
        process_group: Any = None,
    ):
        if model is not None and graph is not None:
            raise ValueError("NGOptimizer: expected model or graph; got both")
        self.learned, self.compute_dtype = as_learned(weights), compute_dtype
        check_compute_dtype(compute_dtype, squares=self.learned.base is not None)
        check_process_group(process_group, self.learned.base is not None)
        # the latest, and what it was bound for
        self._rule: tuple[Any, UpdateRule] | None = None
        self._members: Members | None = None
        self._notices = Notices()
        self._process_group = process_group
        # processes that share the parameters, and who owns what
        self._shards: tuple[Sequence[Tensor], Shards] | None = None
        self._owned: dict[Tensor, Ownership] = {}
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": plain(total_steps),
            "maximize": maximize,
            "renew_every": plain(renew_every),
            "weights": weights_hash(self.learned),
        }
        defaults = with_own_decay(defaults, self._own_decay)
        check_settings(defaults)
        check_no_module(params)
        super().__init__(params, defaults)
        self._notices.of_new(self.param_groups)
        self._source: Source = Inferred()
        if model is not None:
            self._source = Traced(model, self.param_groups)
        elif graph is not None:
            self._source = Given(graph, self.param_groups)
        self._sees_parts = not self._source.exact and _is_called_by_zero()
        if self._sees_parts:
            warnings.warn(f"NGOptimizer: {SOME}", stacklevel=2)

    @property
    def graph(self) -> NeuralGraph:
        """What the optimizer sees.

        With `model` it is traced from the inputs of the first training forward, before
        which it shows what can be told without them.
        """
        return self._connected().network

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and extends the graph by them; what was there keeps its
        state."""
        if isinstance(param_group, dict):
            param_group = with_own_decay(param_group, self._own_decay)
            self._check_group(param_group)
        super().add_param_group(param_group)

    def __repr__(self) -> str:
        early = "graph: known after the first forward"
        line = early if self._is_early() else describe(self.graph)
        return f"{super().__repr__()}\n{line}"

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one step; a closure re-evaluates the model first, and its loss is
        returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = group_tensors(self.param_groups)
        # other processes may have gradients where this one has none
        if all(p.grad is None for p in params) and not self._is_shared(params):
            return loss
        check_groups(self.param_groups)
        members = self._connected()
        self._source.settle()
        if not torch.compiler.is_compiling() and self._begins_at_zero():
            rule = self._bound(members, self._total_steps, takes_up=True)
            grads, _ = members.gradients(self.param_groups, self._own_decay)
            members.records(self.state, rule, grads)
            return loss
        if not torch.compiler.is_compiling():
            self._notices.of_step(self.param_groups)
        rule = self._bound(members, self._total_steps, takes_up=True)
        with without_autocast({p.device for p in params}):
            self._update(rule, members)
        return loss

    def _begins_at_zero(self) -> bool:
        """Whether a first step cannot move anything, and only makes the state.

        `torch.distributed.checkpoint` makes such a step, with gradients of zero, before
        it loads.
        """
        return not self.state and all(
            float(group["lr"]) == 0 for group in self.param_groups
        )

    @uncompiled
    def _take_up(self, rule: UpdateRule, members: Members) -> None:
        """Averages of weights begin, or are dropped, where the horizon was set
        otherwise since."""
        records = [record for p in members.params if (record := self.state.get(p))]
        if not records:
            return
        if self._total_steps is not None and not is_scheduled(self.param_groups):
            steps = max(int(record.get("step", 0)) for record in records)
            self._notices.of_horizon(steps, self._total_steps)
        for p, first in zip(members.params, members.first_records(rule), strict=False):
            record = self.state.get(p)
            if not record:
                continue
            if AVERAGE not in first:
                record.pop(AVERAGE, None)
            elif AVERAGE not in record:
                record[AVERAGE] = as_average(real(local(p)))

    def _update(self, rule: UpdateRule, members: Members) -> None:
        grads, hyper = members.gradients(self.param_groups, self._own_decay)
        apply = self._apply
        if torch.compiler.is_compiling():
            state = members.present_records(self.state)
            if not rule.may_be_traced(grads, state):
                apply = self._apply_on_host
        apply(rule, members, grads, hyper)

    def _apply(
        self,
        rule: UpdateRule,
        members: Members,
        grads: Sequence[Tensor | None],
        hyper: Hyper,
    ) -> None:
        """Moves the parameters and their state."""
        state = members.records(self.state, rule, grads)
        params = members.values()
        for changes in rule.update(grads, state, params, hyper, in_place=True):
            apply(changes, params)
            for position, record in [(c.position, c.record) for c in changes]:
                if state[position] is not record:
                    self.state[members.params[position]].update(record)
            changes.clear()  # their memory is free while the next are made

    _apply_on_host = uncompiled(_apply)

    @torch.no_grad()
    def load_average(self) -> None:
        """Writes the average of the weights so far into the parameters, for good.

        Call it when training without `total_steps` has ended; with `total_steps` the
        weights come to rest by themselves, and nothing is changed. Weights that keep no
        average (those of the paper) change nothing either.
        """
        for p in self._with_averages():
            real(local(p)).copy_(self.state[p][AVERAGE])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are what `load_average` makes them within, and what they were
        after.

        Buffers, as BatchNorm's running statistics, are those of the last weights: call
        `torch.optim.swa_utils.update_bn(batches, model)` within, before evaluation.

        >>> with opt.averaged():
        ...     accuracy = evaluate(model)
        """
        averaged = [local(p) for p in self._with_averages()]
        kept = [(p, p.detach().clone()) for p in averaged]
        self.load_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in kept:
                    p.copy_(value)

    def _with_averages(self) -> list[Tensor]:
        """Parameters that have an average of their weights, which only those without a
        horizon need."""
        if self._total_steps is not None:
            return []
        params = group_tensors(self.param_groups)
        return [p for p in params if AVERAGE in self.state.get(p, {})]

    def state_dict(self) -> dict[str, Any]:
        """As torch's. Where several processes share the parameters, all have to call
        it; tensors of state are then DTensors, which `torch.distributed.checkpoint`
        takes."""
        found = super().state_dict()
        params = group_tensors(self.param_groups)
        if found["state"] and self._is_shared(params):
            records = self._shared_state().whole(
                [self.state.get(p, {}) for p in params]
            )
            found["state"] = numbered(found["param_groups"], records)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; state keeps its dtypes whatever the
        parameters' dtype.

        A group that has the same parameter names in another order is matched by name. A
        `total_steps` of this optimizer is kept, so that a training can be made longer:
        the schedule goes on with what it is for the new number of steps.

        Raises ValueError, and changes nothing, if it was made with other weights, or if
        a parameter's state lacks something or has another shape.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, given: Any) -> dict[str, Any]:
            found = checked(given, self.defaults["weights"])
            groups = in_order(found["param_groups"], self.param_groups)
            groups = self._with_own_horizon(groups)
            loaded.update({**found, "param_groups": groups})
            if self._is_shared(group_tensors(self.param_groups)):
                self._take_own(loaded)
            self._check_loaded(loaded)
            return loaded

        def restore(_: Optimizer) -> None:
            restore_dtypes(self.state, group_tensors(self.param_groups), loaded)
            # a compiled step knows the state that this one has seen
            self._rule = None

        # between the user's hooks and what they are about
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(as_dict(state_dict))
        finally:
            before.remove()
            after.remove()

    def _shared_state(self) -> SharedState:
        members = self._connected()
        rule = self._bound(members, self._total_steps)
        shards = self._sharing(members)
        assert isinstance(rule, SoapRule)
        return SharedState(shards, members.params, rule.layouts[: len(members.params)])

    def _take_own(self, loaded: dict[str, Any]) -> None:
        """Leaves of a loaded state what this process holds."""
        records = self._shared_state().own(records_in_order(loaded))
        loaded["state"] = numbered(loaded["param_groups"], records)

    def __getstate__(self) -> dict[str, Any]:
        derived = (
            "learned",
            "compute_dtype",
            "_source",
            "_sees_parts",
            "_members",
            "_notices",
            "_owned",
        )
        own = {key: self.__dict__[key] for key in derived}
        # collectives belong to this process
        none = dict.fromkeys(("_rule", "_shards", "_process_group"))
        return {**super().__getstate__(), **own, **none}

    def _is_early(self) -> bool:
        """Whether the first forward pass is still to show inputs, or shapes of a lazy
        module."""
        return self._source.awaits_forward or any(
            map(is_lazy, group_tensors(self.param_groups))
        )

    def _connected(self) -> Members:
        """The present parameters in their graph; made anew when a group or a shape has
        changed."""
        params, members = group_tensors(self.param_groups), self._members
        if members is None or self._source.has_news or not members.are(params):
            members = self._members = self._wired(params)
        return members

    @uncompiled
    def _wired(self, params: Sequence[Tensor]) -> Members:
        check_distinct(zip(group_names(self.param_groups), params, strict=True))
        members = Members(self._source.wire(self.param_groups), params)
        if self._members is not None:
            members.check_shapes(self._members, self.state)
            self._begin_anew(members)
        records = members.present_records(self.state)
        self._check_records(members, records, self._total_steps)
        if not self._sees_parts:
            self._log_what_stays_apart(members.network)
        return members

    def _begin_anew(self, members: Members) -> None:
        """Drops the state of parameters that the present graph divides into other
        matrices.

        Parameters that have another shape themselves are left, to be told of.
        """
        rule = self._bound(members, self._total_steps, takes_up=True)
        dropped = []
        for p, spec, first in zip(
            members.params,
            members.graph.parameters,
            members.first_records(rule),
            strict=False,
        ):
            record = self.state.get(p)
            own = real(local(p))
            if record and is_of_other_matrices(record, first, own.shape):
                del self.state[p]
                dropped.append(spec.name)
        if dropped:
            names = ", ".join(dropped)
            warnings.warn(
                "NGOptimizer: parameters were added or removed, so that the graph shows others "
                f"differently; their state begins anew: {names}",
                stacklevel=2,
            )

    def _log_what_stays_apart(self, graph: NeuralGraph) -> None:
        """Logs the unconnected parameters; a warning if the weights read connections."""
        if not unconnected(graph):
            return
        # the default updates every matrix by itself
        is_default = self.learned.base is not None
        is_exact = self._source.exact
        logger.log(
            logging.INFO if is_default else logging.WARNING,
            "NGOptimizer: %s. They are still optimized.%s",
            describe(graph),
            "" if is_exact else " Pass model=model to trace the graph.",
        )

    @property
    def _own_decay(self) -> float:
        """Of the weights, in AdamW's units."""
        return getattr(self.learned.base, "weight_decay", 0.0)

    @property
    def _total_steps(self) -> int | None:
        return self.param_groups[0]["total_steps"]

    def _bound(
        self, members: Members, total_steps: int | None, takes_up: bool = False
    ) -> UpdateRule:
        """The rule on the graph, in the precision and on the device of the parameters.

        takes_up: whether it is to step with the present state.
        """
        params = members.params
        device, dtype = params[0].device, self.compute_dtype
        if dtype is None and self.learned.base is None:
            dtype = max(map(state_dtype, params), key=lambda own: own.itemsize)
            dtype = product_dtype(device, dtype)
        renew_every = self.param_groups[0]["renew_every"]
        shards = self._sharing(members) if self._is_shared(params) else None
        wanted = members.graph, total_steps, device, dtype, renew_every, shards
        if self._rule is None or self._rule[0] != wanted:
            rule = self._bind(*wanted)
            if takes_up:
                renew_every = rule.renewal_interval(device)
                for group in self.param_groups:
                    group["renew_every"] = renew_every
                self._take_up(rule, members)
            self._rule = (*wanted[:-2], renew_every, shards), rule
            if shards is not None:
                self._owned = dict(zip(params, shards.owned, strict=True))
        return self._rule[1]

    def _is_shared(self, params: Sequence[Tensor]) -> bool:
        """Whether several processes share the parameters."""
        return self._process_group is not None or are_divided(params)

    @uncompiled
    def _sharing(self, members: Members) -> Shards:
        """The processes that share the parameters; they have to ask for it together."""
        params = members.params
        if self._shards is None or self._shards[0] is not params:
            names = [spec.name for spec in members.graph.parameters[: len(params)]]
            named = list(zip(names, params, strict=True))
            shards = Shards(named, self._process_group, self._owned)
            self._shards = params, shards
        return self._shards[1]

    @uncompiled
    def _bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None,
        device: torch.device,
        dtype: torch.dtype | None,
        renew_every: int | None,
        shards: Shards | None,
    ) -> UpdateRule:
        return self.learned.bind(
            graph,
            total_steps,
            device=device,
            dtype=dtype,
            renew_every=renew_every,
            shards=shards,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a new group does not fit; fills in what all have in
        common."""
        common = dict(self.defaults)
        if are_named(group.get("weights"), common["weights"]):
            group["weights"] = common["weights"]
        counts = "total_steps", "renew_every"
        group.update({key: plain(group[key]) for key in counts if key in group})
        for key in counts:
            if self.param_groups:
                common[key] = self.param_groups[0][key]
            is_open = not self.param_groups or key == "renew_every"
            if common[key] is None and is_open:  # not decided yet
                common[key] = group.get(key)
        ignored = check_keys(group, common)
        check_settings({**common, **group})
        for key in counts:
            group.setdefault(key, common[key])
        params = group["params"]
        check_no_module(params)
        if not isinstance(params, Tensor | set):  # torch has its say on these
            group["params"] = params = list(params)
            check_distinct(named_members(params))
            check_no_pieces(named_members(params))
            if self.learned.base is None:
                check_whole(named_members(params))
        self._notices.of_ignored(ignored)

    def _with_own_horizon(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Loaded groups with `total_steps` of this optimizer, where it has one."""
        own = self._total_steps
        if own is None or not groups or groups[0]["total_steps"] == own:
            return groups
        self._notices.of_loaded("total_steps", groups[0]["total_steps"], own)
        return [{**group, "total_steps": own} for group in groups]

    def _check_loaded(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if a record does not fit."""
        records = records_in_order(state_dict)
        # with an early graph they are checked when it is known
        if self._is_early() or not any(records):
            return
        groups = state_dict["param_groups"]
        total_steps = groups[0]["total_steps"] if groups else None
        self._check_records(self._connected(), records, total_steps)

    def _check_records(
        self,
        members: Members,
        records: Sequence[Record],
        total_steps: int | None,
    ) -> None:
        """Raises ValueError if a parameter's state is not what the rule has for it."""
        if not any(records):
            return
        expected = members.first_records(self._bound(members, total_steps))
        # torch says where there are more records than parameters
        specs = members.graph.parameters[: len(members.params)]
        for spec, record, first in zip(specs, records, expected, strict=False):
            if record:
                check_record(spec.name, record, first, self._source.exact)


def _is_called_by_zero() -> bool:
    """Whether `NGOptimizer` is made by a ZeroRedundancyOptimizer of several processes."""
    maker = sys._getframe(2).f_globals.get("__name__")  # the caller's caller
    return maker == ZERO and torch.distributed.get_world_size() > 1
