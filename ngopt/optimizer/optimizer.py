"""NGOptimizer: the default and learned optimizers as a `torch.optim.Optimizer`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils._pytree import tree_map

from ngopt.devices import without_autocast
from ngopt.functional import UpdateRule
from ngopt.graph import NeuralGraph
from ngopt.metanets import Metanet
from ngopt.optimizer import arguments, averages, graph_source, param_groups, state_dicts
from ngopt.optimizer.binding import Binding
from ngopt.optimizer.learning_rates import LearningRates, default_lr
from ngopt.optimizer.log_messages import Messages, describe, name_of
from ngopt.optimizer.moved_state import selected_rows
from ngopt.optimizer.param_groups import group_tensors
from ngopt.packing import plain
from ngopt.pretrained import as_rule, header_of
from ngopt.soap.config import SoapConfig

NAMES_LINE = "    param_names: "  # of `repr`, which leaves them out
COPIED_ATTRIBUTES = (
    "rule",
    "compute_dtype",
    "_name",
    "_lr",
    "_messages",
    "_rates",
    "_binding",
    "_kept_averages",
)


class NGOptimizer(Optimizer):
    """An optimizer that reads the graph of a network; no learning rate is needed.

    The default is SOAP (Vyas et al. 2024) with one setting for all networks
    (`ngopt.soap.soap`): Adam in the eigenbases Q of Kronecker factors. A matrix W with
    Nesterov's momentum n and second moments v in the eigenbases changes by:

        u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T
        W <- (1 - 1e-3 c t weight_decay) W - c s u    t: schedule, s: step size

    `docs/default.md` has the other equations. s is relative to the RMS of W, and
    proportional to t. With total_steps t rises over 8 % of the steps, then falls to
    zero. c = scale * lr / R is 1 unless `lr` changes: R is the largest lr of all groups
    and steps, so lr has no unit. Metanets predict the update instead.

    Args:
        params: tensors, (name, tensor) pairs or parameter groups, as in torch.optim.
        lr: has no unit (`docs/recipes/learning-rates.md`): ratios between groups count,
            and how it changes. A scheduler of torch replaces the built-in schedule, and
            so does an lr that changes within three steps; ReduceLROnPlateau and later
            changes multiply it. Per group.
        weight_decay: decoupled: each step multiplies weights by 1 - 1e-3 c t
            weight_decay, as AdamW at a learning rate of 1e-3 (default: None, the rule's
            own, 0.45 for matrices and tables). Per group.
        scale: multiplies the update and the decay (default: 1.0). Per group.
        model: the module with these parameters. Its graph is traced from the inputs of
            its first forward pass in training. It may have parameters that are not
            optimized.
        graph: a graph of `build_graph` in place of `model`. Parameters are matched by
            name if all have one in it, else by order.
        rule: "default", the name of bundled weights, a `SoapConfig`, the path of a
            weights file, a metanet, or an `UpdateRule` (default: "default").
        total_steps: the number of training steps; the step size then falls to zero.
            Without it use `eval` or `load_average`. Metanets of the paper ignore it
            unless their weights have a `Cooldown`.
        maximize: maximize instead of minimize (default: False). Per group.
        compute_dtype: dtype of a metanet (default: dtype of the state), or of rotations
            of the default (default: dtype of the state on CPUs, bfloat16 on
            accelerators).
        precondition_frequency: steps between two renewals of an eigenbasis of the
            default. Chosen by device if None, and stored in the state
            (`ngopt.soap.eigenbasis.renewal_interval`).
        process_group: processes with equal gradients, as under DistributedDataParallel,
            that divide work and state of the default. DTensors of `fully_shard` or
            `parallelize_module` need none.
        others: hyperparameters of torch's optimizers, such as betas, eps or fused, have
            no effect; one warning names them.

    State is float32, or float64 for float64 parameters; preconditioners of more than
    512 rows are bfloat16. A complex parameter is optimized as pairs of real numbers.
    Steps skip parameters without a gradient.

    Raises:
        ValueError: If there are no parameters, an argument is out of range, the rule
            cannot be loaded, the graph does not fit, or parameters are flat pieces of
            FullyShardedDataParallel.
        TypeError: For a module in place of parameters, and for an unknown argument.

    Examples:
        >>> optimizer = NGOptimizer(model.named_parameters(), total_steps=1000)
        >>> optimizer.zero_grad()
        >>> loss_fn(model(input), target).backward()
        >>> optimizer.step()
    """

    __module__ = "ngopt"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        weight_decay: float | None = None,
        *,
        scale: float = 1.0,
        model: nn.Module | None = None,
        graph: NeuralGraph | None = None,
        rule: str | os.PathLike[str] | SoapConfig | Metanet | UpdateRule = "default",
        total_steps: int | None = None,
        maximize: bool = False,
        compute_dtype: torch.dtype | None = None,
        precondition_frequency: int | None = None,
        process_group: Any = None,
        **others: Any,
    ):
        if model is not None and graph is not None:
            raise ValueError("NGOptimizer: expected model or graph; got both")
        arguments.check_names(others)
        arguments.check_no_module(params)
        self.rule: UpdateRule = as_rule(rule)
        self._name = name_of(rule)
        self.compute_dtype = compute_dtype
        arguments.check_compute_dtype(compute_dtype, self.rule)
        arguments.check_process_group(process_group, self.rule)
        self._messages = Messages()
        self._messages.warn_of_ignored(arguments.ignored_settings(others))
        self._rates = LearningRates(self._messages)
        self._lr = lr  # of groups that are added without one
        self._kept_averages: averages.Kept = {}  # while the parameters are averages
        if not isinstance(params, Tensor | set):  # for which torch has messages
            params = cast(ParamsT, list(params))
        defaults: dict[str, Any] = {
            "lr": default_lr(params) if lr is None else lr,
            "scale": scale,
            "weight_decay": weight_decay,
            "total_steps": param_groups.as_python_int(total_steps),
            "maximize": maximize,
            "precondition_frequency": param_groups.as_python_int(
                precondition_frequency
            ),
            "factor_rows": None,
            "reference_lr": None,
            "lr_schedule": param_groups.BUILT_IN,
            averages.TRAIN_MODE: True,
        }
        param_groups.check_settings(defaults)
        super().__init__(params, defaults)
        # schedulers that cycle momentum, which has no effect, look for this default
        self.defaults["momentum"] = None
        self._messages.check_new(self.param_groups)
        source: graph_source.GraphSource = graph_source.InferredGraph()
        if model is not None:
            source = graph_source.TracedGraph(model, self.param_groups)
        elif graph is not None:
            source = graph_source.GivenGraph(graph, self.param_groups)
        self._binding = Binding(
            source, self.rule, compute_dtype, process_group, self._messages
        )

    def __getstate__(self) -> dict[str, Any]:
        attributes = {key: self.__dict__[key] for key in COPIED_ATTRIBUTES}
        return {**super().__getstate__(), **attributes}

    def __repr__(self) -> str:
        lines = super().__repr__().splitlines()
        text = "\n".join(line for line in lines if not line.startswith(NAMES_LINE))
        decay = f"weight_decay: None (of the rule, {self.rule.weight_decay:g})"
        text = f"{text.replace('weight_decay: None', decay)}\nrule: {self._name}"
        if self._awaits_forward():
            return f"{text}\ngraph: not traced yet; run one training step"
        parameters = self._binding.parameters(self)
        records = parameters.records_in_network(self.state)
        total_steps = self.param_groups[0]["total_steps"]
        about = describe(self.rule, parameters.network, records, total_steps)
        return f"{text}\n{about}"

    @property
    def graph(self) -> NeuralGraph:
        """The neural graph of the parameters; with `model`, without inputs before its
        first forward pass in training."""
        return self._binding.parameters(self).network

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters to the optimizer and its graph; others keep their state."""
        if not isinstance(param_group, dict):
            return super().add_param_group(param_group)  # raises TypeError
        param_group = dict(param_group)
        given = param_group.get("lr", self._lr)
        ignored = param_groups.complete_new_group(
            param_group, self.defaults, self.param_groups, self.rule
        )
        self._messages.warn_of_ignored(ignored)
        super().add_param_group(param_group)
        self._rates.add(given, self.param_groups[:-1])
        return None

    def select_rows(self, param: Tensor, new: Tensor, keep: Any) -> None:
        """Replaces a parameter by one with some of its rows, as of points.

        A row keeps what state it has of its own, and the number of steps. What rows
        share, as the matrix of a layer does, starts anew.

        Args:
            param: of this optimizer, (rows, ...).
            new: takes its place, (new rows, ...).
            keep: index of `param` for each row of `new`, which may repeat: the rows
                that are kept or copied; or a mask (rows,).

        Examples:
            >>> new = nn.Parameter(points.detach()[keep])
            >>> opt.select_rows(points, new, keep)
        """
        try:
            source = torch.arange(len(param), device=param.device)[keep]
        except IndexError as error:
            raise ValueError(
                "NGOptimizer: select_rows: expected keep with indices of the "
                f"{len(param)} rows, the first axis, or a mask for them; {error}"
            ) from error
        is_known = any(p is param for p in group_tensors(self.param_groups))
        if not is_known or len(source) != len(new):
            raise ValueError(
                "NGOptimizer: select_rows: expected a parameter of this optimizer, and "
                f"keep with a row for each of the {len(new)} of new; got "
                f"{len(source)} rows" + " of another tensor" * (not is_known)
            )
        for group in self.param_groups:
            group["params"] = [new if p is param else p for p in group["params"]]
        self._binding.source.record_again()
        record = self.state.pop(param, None)
        if record and not self._is_shared():
            self.state[new] = selected_rows(record, source, len(param))
            self._binding.expects_moved_state = True

    @torch.no_grad()
    def step(self, closure=None):
        """Performs a single optimization step.

        Args:
            closure: re-evaluates the model and returns the loss, which `step` returns.

        Raises RuntimeError, and changes nothing, after `eval`.
        """
        if not all(g.get(averages.TRAIN_MODE, True) for g in self.param_groups):
            raise RuntimeError(
                "NGOptimizer: expected parameters with weights; got their averages, as "
                "after eval() or in averaged(). Call opt.train() before step()."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        params = [p for group in groups for p in group["params"]]
        # other processes may have gradients where this one has none
        if all(p.grad is None for p in params) and not self._binding.is_shared(params):
            return loss
        self._rates.follow(groups, self.state)
        bound = self._binding.for_step(self, params)
        grads, hyper = bound.gradients(groups)
        is_new = not self.state and not torch.compiler.is_dynamo_compiling()
        if is_new and state_dicts.initializes(groups, grads, bound.shards):
            bound.records_for_step(self.state, grads)
            return loss
        with without_autocast({p.device for p in params}):
            bound.update(self.state, grads, hyper)
        return loss

    def eval(self) -> None:
        """Puts the average of the weights so far into the parameters, until `train`.

        With `total_steps`, and for metanets of the paper, there is no average and
        nothing changes. `state_dict` keeps the weights, so a run can be saved here:
        load model and optimizer, then call `train`.

        Buffers are not averaged; `torch.optim.swa_utils.update_bn` updates BatchNorm's.
        """
        self._messages.is_first("average")
        if not self._is_evaluating():
            self._kept_averages = averages.exchange(self.param_groups, self.state)

    def train(self) -> None:
        """Puts the weights back after `eval`. Changes of the averages are lost."""
        if self._is_evaluating():
            averages.exchange_back(self.param_groups, self.state, self._kept_averages)
            self._kept_averages = {}

    def load_average(self) -> None:
        """Overwrites the parameters with the average, for good; see `eval`.

        Call it at the end of a training run without `total_steps`.
        """
        self._messages.is_first("average")
        self.train()
        params = averages.averaged_parameters(self.param_groups, self.state)
        averages.write_averages(params, self.state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context between `eval` and `train`; after `eval` it changes nothing.

        Examples:
            >>> with opt.averaged():
            ...     accuracy = evaluate(model)
        """
        if self._is_evaluating():
            yield
            return
        self.eval()
        try:
            with averages.warning_of_changes(self.param_groups, self.state):
                yield
        finally:
            self.train()

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the constants under "rule". Processes that share the
        parameters must all call it; the state is then DTensors, for
        `torch.distributed.checkpoint`."""
        if self._binding.expects_moved_state:
            self._binding.parameters(self)  # completes the state of new parameters
        state_dict = super().state_dict()
        state_dict["state"] = tree_map(plain, state_dict["state"])
        state_dict["rule"] = header_of(self.rule)
        if state_dict["state"] and self._is_shared():
            records = state_dicts.records_in_order(state_dict)
            groups = state_dict["param_groups"]
            records = self._binding.shared_state(self, groups).to_dtensors(records)
            state_dict["state"] = state_dicts.numbered(groups, records)
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; state keeps its dtypes.

        Groups with the same parameter names in another order are matched by name. Of
        the settings `total_steps` of this optimizer is kept, so that a run can be made
        longer. A UserWarning names constants that differ from those of the saved run.

        Raises ValueError, and changes nothing, if the state lacks a tensor or has
        another shape, as that of another rule.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, state_dict: Any) -> dict[str, Any]:
            loaded.update(self._checked(state_dict))
            return loaded

        def restore(_: Optimizer) -> None:
            params = group_tensors(self.param_groups)
            state_dicts.restore_dtypes(self.state, params, loaded)
            self._binding.clear_rule()  # compiled steps are guarded by the old state
            self._rates.reset()
            self._kept_averages = {}

        # runs after the pre-hooks, and before the post-hooks, of the user
        pre_hook = self.register_load_state_dict_pre_hook(check)
        post_hook = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dicts.check_type(state_dict, dict))
        finally:
            pre_hook.remove()
            post_hook.remove()

    def _checked(self, state_dict: Any) -> dict[str, Any]:
        """Raises ValueError if a state_dict does not fit."""
        present = self.param_groups
        loaded = dict(state_dicts.checked(state_dict))
        groups = state_dicts.in_order(loaded["param_groups"], present)
        groups = state_dicts.with_present_settings(groups, present)
        loaded["param_groups"] = groups
        if self._is_shared():
            shared = self._binding.shared_state(self, groups)
            records = state_dicts.records_in_order(loaded)
            loaded["state"] = state_dicts.numbered(groups, shared.to_local(records))
        state_dicts.warn_of_changes(loaded.get("rule"), header_of(self.rule))
        if not self._awaits_forward():  # else checked when the graph is known
            self._binding.check_loaded(loaded, self)
        return loaded

    def _is_evaluating(self) -> bool:
        """Whether parameters are averages, and averages in the state weights."""
        modes = [group.get(averages.TRAIN_MODE, True) for group in self.param_groups]
        return not all(modes)  # groups that were added since have True

    def _is_shared(self) -> bool:
        return self._binding.is_shared(group_tensors(self.param_groups))

    def _awaits_forward(self) -> bool:
        """Whether a forward pass gives inputs, or shapes of a lazy module, later."""
        has_lazy = any(map(param_groups.is_lazy, group_tensors(self.param_groups)))
        return self._binding.source.awaits_forward or has_lazy
