"""A trace leaves the settings of the process as they were, whatever a forward does."""

import decimal
import gc
import locale
import logging
import os
import random
import sys
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
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import checkpoint

from ngopt import build_graph
from ngopt.graph.tracing import interpreter
from ngopt.graph.tracing.process_state import process_kept


def _attribute(owner, name, before, changed):
    return partial(getattr, owner, name), partial(setattr, owner, name), before, changed


def _functions(owner, name, before, changed, read="get", write="set"):
    functions = (getattr(owner, f"{how}_{name}") for how in (read, write))
    return *functions, before, changed


def _of_torch(name, before, changed):
    return _functions(torch._C, name, before, changed, "_get", "_set")


def _switch(name, before=False, owner=torch._C, write="_set"):
    return _functions(owner, f"{name}_enabled", before, not before, "is", write)


SETTINGS = [
    # how to read it, how to write it, an unusual value before, one that a forward sets
    _functions(torch, "default_dtype", torch.float64, torch.bfloat16),
    _functions(torch, "deterministic_debug_mode", 2, 1),
    _functions(torch, "float32_matmul_precision", "high", "medium"),
    _functions(torch, "num_threads", 2, 1),
    _switch("grad"),
    _functions(torch._C, "multithreading_enabled", False, True, "_is", "_set"),
    _functions(torch._C, "view_replay_enabled", True, False, "_is", "_set"),
    _functions(torch._C, "fwd_grad_enabled", False, True, "_is", "_set"),
    _switch("autocast_cache", write="set"),
    (
        lambda: torch.is_autocast_enabled("cpu"),
        partial(torch.set_autocast_enabled, "cpu"),
        True,
        False,
    ),
    (
        lambda: torch.get_autocast_dtype("cpu"),
        partial(torch.set_autocast_dtype, "cpu"),
        torch.float16,
        torch.bfloat16,
    ),
    (
        lambda: torch.get_autocast_dtype("cuda"),
        partial(torch.set_autocast_dtype, "cuda"),
        torch.bfloat16,
        torch.float16,
    ),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled, True, False),
    _of_torch("cudnn_enabled", False, True),
    _of_torch("cudnn_benchmark", True, False),
    _of_torch("cudnn_deterministic", True, False),
    _of_torch("cudnn_allow_tf32", False, True),
    _of_torch("mkldnn_enabled", False, True),
    _of_torch("nnpack_enabled", False, True),
    _of_torch("deterministic_fill_uninitialized_memory", False, True),
    _of_torch("sdp_priority_order", [1, 2, 0, 3, 4], [0, 1, 2, 3, 4]),
    _of_torch("warnAlways", True, False),
    (
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.enable_flash_sdp,
        False,
        True,
    ),
    (
        torch.backends.cuda.math_sdp_enabled,
        torch.backends.cuda.enable_math_sdp,
        True,
        False,
    ),
    _attribute(torch.backends.opt_einsum, "strategy", "greedy", "optimal"),
    _attribute(torch.backends.cudnn, "benchmark_limit", 3, 4),
    _attribute(torch.distributions.Distribution, "_validate_args", False, True),
    _attribute(torch._tensor_str.PRINT_OPTS, "precision", 9, 2),
    _attribute(torch.fx.config, "do_not_emit_stack_traces", True, False),
    _attribute(torch.compiler, "_is_compiling_flag", False, True),
    _attribute(torch.compiler, "_is_exporting_flag", False, True),
    _attribute(checkpoint, "_enable_checkpoint_early_stop", False, True),
    _attribute(parametrize, "_cache_enabled", 1, 2),
    (
        lambda: np.geterr()["divide"],
        lambda how: np.seterr(divide=how),
        "raise",
        "ignore",
    ),
    (
        lambda: np.get_printoptions()["precision"],
        lambda n: np.set_printoptions(precision=n),
        3,
        5,
    ),
    (lambda: np.random.get_state()[1].tolist(), np.random.seed, 5, 6),
    (random.getstate, random.seed, 7, 8),
    (
        lambda: decimal.getcontext().prec,
        partial(setattr, decimal.getcontext(), "prec"),
        9,
        11,
    ),
    (sys.getrecursionlimit, sys.setrecursionlimit, 4000, 3000),
    (sys.getswitchinterval, sys.setswitchinterval, 0.25, 0.5),
    (gc.isenabled, lambda on: gc.enable() if on else gc.disable(), False, True),
    (gc.get_threshold, lambda n: gc.set_threshold(*n), (900, 9, 9), (800, 8, 8)),
    (os.getcwd, os.chdir, "/usr", "/"),
    (
        lambda: os.environ.get("NGOPT_TEST"),
        partial(os.environ.__setitem__, "NGOPT_TEST"),
        "a",
        "b",
    ),
    (partial(locale.setlocale, locale.LC_ALL),) * 2 + ("C", "C.UTF-8"),
    (lambda: logging.root.manager.disable, logging.disable, 10, 50),
    (lambda: logging.root.level, logging.root.setLevel, 15, 10),
    (lambda: warnings.filters[0], warnings.simplefilter, "ignore", "error"),
    _attribute(sys, "stderr", sys.__stderr__, sys.__stdout__),
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
    assert len(SETTINGS) + len(STACKS) >= 30
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
