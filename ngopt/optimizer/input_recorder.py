"""Records the inputs of a model's first training forward, to trace its graph."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.jit._trace import is_tracing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from ngopt.devices import is_transformed
from ngopt.graph import Inputs
from ngopt.graph.tracing.copies import Copier


class Recorder:
    """A forward pre-hook that stores detached inputs of a module, then removes itself.

    It waits for a forward with gradients in training mode. Until then it stores the
    inputs of forwards with gradients in evaluation mode. It skips forwards without
    gradients and those that a compiler, a tracer or torch.func runs.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.inputs: Inputs | None = None
        self._handle: RemovableHandle | None = None
        self._register()

    def _register(self) -> None:
        hooks = self.model.__dict__.get("_forward_pre_hooks")
        # missing while a model that refers to the optimizer is copied
        if hooks is None:
            return
        if not isinstance(hooks, HooksWithoutRecorder):
            hooks = self.model._forward_pre_hooks = HooksWithoutRecorder(hooks)
        self._handle = self.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or _is_traced(args, kwargs):
            return
        # copies, as the forward may change objects among the inputs
        inputs = Copier(Tensor.detach).copy((args, kwargs))
        self.inputs = Inputs(*tree_map_only(nn.Parameter, Tensor.detach, inputs))
        if module.training:
            self.remove()

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        is_waiting = self._handle is not None
        return {"model": self.model, "inputs": self.inputs, "is_waiting": is_waiting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The copy waits for a forward of the copied model."""
        self.model, self.inputs, self._handle = state["model"], state["inputs"], None
        if state["is_waiting"]:
            self._register()


class HooksWithoutRecorder(OrderedDict):
    """Forward pre-hooks that hide a `Recorder` from copies, pickles and torch.jit.

    torch.jit.script compiles every hook that `values` lists.
    """

    def values(self) -> Any:
        return self._others().values()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OrderedDict, (list(self._others().items()),)

    def _others(self) -> OrderedDict:
        others = OrderedDict()
        for key, hook in OrderedDict.items(self):
            if type(hook) is not Recorder:
                others[key] = hook
        return others


def _is_traced(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a compiler, a tracer or torch.func runs the forward."""
    if torch.compiler.is_compiling() or is_tracing():
        return True
    if get_proxy_mode() is not None or is_transformed():
        return True
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(leaf, (FakeTensor, torch.fx.Proxy)) for leaf in leaves)
