"""A trace leaves the settings of the process as they were, whatever a forward does."""

import logging
import random
import warnings
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from ngopt import build_graph
from ngopt.graph.tracing import interpreter
from ngopt.graph.tracing.isolation import process_kept


def _of_torch(name, before, changed, *args, read="get_{}", write="set_{}"):
    functions = (getattr(torch, how.format(name)) for how in (read, write))
    return *(partial(function, *args) for function in functions), before, changed


_switch = partial(_of_torch, read="is_{}_enabled", write="set_{}_enabled")

SETTINGS = [
    # how to read it, how to write it, an unusual value before, one that a forward sets
    _of_torch("default_dtype", torch.float64, torch.bfloat16),
    _of_torch("deterministic_debug_mode", 2, 1),
    (torch.is_grad_enabled, torch._C._set_grad_enabled, False, True),
    _switch("autocast_cache", False, True),
    _switch("autocast", True, False, "cpu"),
    _of_torch("autocast_dtype", torch.float16, torch.bfloat16, "cpu"),
    _of_torch("autocast_dtype", torch.bfloat16, torch.float16, "cuda"),
    (
        partial(getattr, torch.fx.config, "do_not_emit_stack_traces"),
        partial(setattr, torch.fx.config, "do_not_emit_stack_traces"),
        True,
        False,
    ),
    (lambda: np.random.get_state()[1].tolist(), np.random.seed, 5, 6),
    (random.getstate, random.seed, 7, 8),
    (lambda: torch.get_rng_state().tolist(), torch.manual_seed, 3, 4),
    (lambda: logging.root.manager.disable, logging.disable, 10, 50),
    (lambda: warnings.filters[0], warnings.simplefilter, "ignore", "error"),
]


def _hook(*_):
    pass


STACKS = [
    _functorch.get_dynamic_layer_stack_depth,
    lambda: forward_ad._current_level,
    _get_current_function_mode_stack,
    torch.get_default_device,
    lambda: logging.getLogger(__name__).isEnabledFor(logging.WARNING),
    lambda: dict(torch_module._global_forward_hooks),
]


def _enter_all():
    register_module_forward_hook(_hook)
    torch.set_default_device("meta")
    TorchFunctionMode().__enter__()
    forward_ad.enter_dual_level()
    _functorch._grad_increment_nesting()
    _functorch._vmap_increment_nesting(2, "error")


class Disturbing(nn.Module):
    """Changes all settings; where it fails, it enters modes and transforms, too."""

    def __init__(self, fails):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.LazyLinear(2)
        self.fails = fails

    def forward(self, x):
        y = self.b(self.a(x).tanh())
        if self.fails == "transform":
            torch.func.vmap(self.disturb)(x)
        is_recorded = get_proxy_mode() is not None
        is_exported = torch.compiler.is_exporting()
        self.disturb(
            {
                "export": is_exported,
                "recording": is_recorded,
                "guess": True,
                "lazy": not is_recorded,
            }.get(self.fails, False)
        )
        return y

    def disturb(self, fails=True):
        for _, write, _, changed in SETTINGS:
            write(changed)
        logging.getLogger(__name__).warning("a logger stores whether it is enabled")
        if fails is not False:
            _enter_all()
            raise RuntimeError


@pytest.fixture
def unusual():
    with process_kept():
        for _, write, value, _ in SETTINGS:
            write(value)
        yield


@pytest.mark.usefixtures("unusual")
def test_each_setting_of_the_list_can_be_changed():
    for read, write, _, changed in SETTINGS:
        before = read()
        write(changed)
        assert read() != before, (read, before)


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize(
    "fails", ["never", "export", "transform", "recording", "rules", "guess", "lazy"]
)
def test_settings_are_as_before(fails, monkeypatch):
    def failing(_):
        _enter_all()
        raise IndexError

    if fails == "rules":
        monkeypatch.setattr(interpreter, "assemble", failing)
    model = Disturbing(fails)
    x = torch.ones(2, 3)
    if fails != "lazy":
        model.b(torch.ones(1, 4))
    before = [read() for read, *_ in SETTINGS], [read() for read in STACKS]
    with suppress(Exception):
        build_graph(model, None if fails == "guess" else x)
    after = [read() for read, *_ in SETTINGS], [read() for read in STACKS]
    assert after == before
