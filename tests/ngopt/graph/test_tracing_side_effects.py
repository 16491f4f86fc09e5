"""Tracing changes nothing of the module that is traced, nor of anything around it."""

import functools
import threading
from collections import deque
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from ngopt import NGOptimizer, build_graph
from ngopt.graph.connectivity import unconnected
from ngopt.graph.tracing.copies import Copier
from tests.networks import Between, FromFunction


class Kept:
    """Stores activations in an attribute, in one of its class, and in a slot."""

    of_class: ClassVar = []
    table: ClassVar = {}
    __slots__ = ("__dict__", "slot")

    def __init__(self):
        self.items = []
        self.last = deque(maxlen=2)
        self.slot = None

    def push(self, h):
        self.items = [*self.items, h.detach()]
        self.last.append(h.detach())
        self.of_class.append(h.detach())
        self.table["last"] = h.detach()
        self.slot = h.detach()


class Net(nn.Module):
    count = 0
    mean = None

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.kept = Kept()
        self.lock = threading.Lock()
        self.hidden = []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        h = self.a(x).relu()
        self.kept.push(h)
        self.hidden.append(h)
        self.first = h  # belongs to an autograd graph
        type(self).count += 1
        type(self).mean = h.mean()
        self.calls += 1
        return self.b(h)


class Branching(Net):
    """Its functions are recorded with real values: its values decide what it does."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


NETWORKS = [Net, Branching]


@pytest.fixture(autouse=True)
def _clean():
    Kept.of_class.clear()
    Kept.table.clear()
    Net.count, Net.mean = 0, None
    Branching.count = 0
    yield


@pytest.mark.parametrize("kind", NETWORKS)
def test_stored_values_are_as_before(kind):
    model = kind()
    model(torch.randn(4, 8))
    items, first = list(model.kept.items), model.first
    assert unconnected(build_graph(model, torch.randn(4, 8))) == []
    assert [*map(id, model.kept.items)] == [*map(id, items)]
    assert len(model.kept.last) == len(model.hidden) == 1
    assert len(Kept.of_class) == 1 and kind.count == 1
    assert type(kind.mean) is type(Kept.table["last"]) is torch.Tensor
    assert type(model.kept.slot) is torch.Tensor
    assert model.first is first and first.grad_fn is not None
    assert model.calls == 1


def test_a_tensor_of_a_class_that_a_forward_writes_is_as_before():
    class Writing(Net):
        queue = torch.zeros(4)

        def forward(self, x):
            y = self.b(self.a(x))
            self.queue[:] = y.detach()[0]
            return y if y.sum() < 1e9 else x

    build_graph(Writing(), torch.randn(4, 8))
    assert not Writing.queue.any()


def test_activations_stored_in_a_forward_train():
    model = Net()
    opt = NGOptimizer(model.parameters(), model=model)
    for _ in range(3):
        opt.zero_grad()
        y = model(torch.randn(4, 8))
        (y.square().mean() + torch.cat(model.kept.items).mean().square()).backward()
        opt.step()
    assert len(model.kept.items) == 3


def test_a_cache_of_functools_holds_no_fake_tensors():
    class Masked(nn.Linear):
        @staticmethod
        @functools.lru_cache
        def mask(length):
            return torch.ones(length, length).tril()

        def forward(self, x):
            return self.mask(x.shape[1]) @ super().forward(x)

    model = Masked(4, 4)
    build_graph(model, torch.randn(2, 3, 4))
    assert type(model.mask(3)) is torch.Tensor


def test_a_cache_in_a_closure_holds_no_fake_tensors():
    @functools.lru_cache
    def mask(length):
        return torch.ones(length, length).tril()

    def forward(m, x):
        return mask(x.shape[1]) @ m.a(x)

    build_graph(FromFunction(forward, a=(4, 4)), torch.randn(2, 3, 4))
    assert type(mask(3)) is torch.Tensor


def test_inputs_are_as_before():
    class Writing(nn.Linear):
        def forward(self, x, cache):
            cache.append(x)
            return super().forward(x.mul_(2)) if x.sum() < 1e9 else x

    x, cache = torch.ones(2, 3), []
    build_graph(Writing(3, 4), (x, cache))
    assert cache == []
    assert torch.equal(x, torch.ones(2, 3))


class TestHooks:
    def test_hooks_of_the_user_do_not_run(self):
        calls = []
        model = Net()
        model.a.register_forward_pre_hook(lambda *_: calls.append("before"))
        model.a.register_forward_hook(lambda *_: calls.append("behind"))
        model.register_forward_hook(lambda *_: calls.append("whole"))
        build_graph(model, torch.randn(4, 8))
        assert calls == []
        model(torch.randn(4, 8))
        assert calls == ["before", "behind", "whole"]

    def test_hooks_of_all_modules_do_not_run(self):
        calls = []
        handles = [
            register_module_forward_pre_hook(lambda *_: calls.append("before")),
            register_module_forward_hook(lambda *_: calls.append("behind")),
        ]
        try:
            build_graph(Net(), torch.randn(4, 8))
            assert calls == []
            nn.ReLU()(torch.ones(1))
            assert calls == ["before", "behind"]
        finally:
            for handle in handles:
                handle.remove()

    def test_hooks_of_a_module_in_a_list_do_not_run(self):
        calls = []
        teacher = nn.Linear(8, 8)
        teacher.register_forward_hook(lambda *_: calls.append(1))

        class Student(nn.Linear):
            def forward(self, x):
                return super().forward(x) + self.teacher[0](x)

        model = Student(8, 8)
        model.teacher = [teacher]
        build_graph(model, torch.randn(4, 8))
        assert calls == []

    @pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
    @pytest.mark.parametrize("package", [nn.utils, nn.utils.parametrizations])
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_hooks_that_compute_weights_run(self, norm, package):
        calls = []
        function = getattr(package, norm)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), function(nn.Linear(4, 2)))
        model[2].register_forward_pre_hook(lambda *_: calls.append(1))
        graph = build_graph(model, torch.randn(4, 3))
        assert graph.unplaced == () and unconnected(graph) == []
        assert calls == []

    def test_hooks_of_the_user_that_compute_weights_run(self):
        def scaled(module, _):
            module.weight = module.weight_raw * 0.5

        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        raw = model[2].weight
        del model[2].weight
        model[2].register_parameter("weight_raw", raw)
        model[2].weight = raw * 0.5
        model[2].register_forward_pre_hook(scaled)
        graph = build_graph(model, torch.randn(4, 3))
        assert graph.unplaced == () and unconnected(graph) == []


class TestCopies:
    def test_parameters_are_shared_and_buffers_are_not(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2))
        other = Copier().module(model)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert p is q
        for a, b in zip(model.buffers(), other.buffers(), strict=True):
            assert a is not b and torch.equal(a, b)

    def test_references_to_modules_are_to_the_copies(self):
        model = Net()
        model.kept.owner = model
        model.call = model.a.forward
        model.part = functools.partial(nn.Module.__call__, model.b)
        other = Copier().module(model)
        assert other.kept.owner is other
        assert other.call.__self__ is other.a
        assert other.part.args == (other.b,)

    def test_functions_refer_to_the_copies(self):
        model = Net()
        model.by_closure = lambda x: model.b(x)
        model.by_default = lambda x, net=model: net.b(x)
        other = Copier().module(model)
        assert other.by_closure.__closure__[0].cell_contents is other
        assert other.by_default.__defaults__ == (other,)

    @pytest.mark.parametrize("how", ["closure", "global"])
    def test_a_replaced_forward_is_traced(self, how):
        global replaced
        model = replaced = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        if how == "closure":
            model.forward = lambda x: model[1](model[0](x).relu())
        else:
            model.forward = lambda x: replaced[1](replaced[0](x).relu())
        graph = build_graph(model, torch.randn(5, 3))
        assert graph.unplaced == () and unconnected(graph) == []

    def test_files_and_objects_with_del_are_shared(self, tmp_path):
        class Owner:
            def __del__(self):
                deleted.append(1)

        deleted = []
        model = Net()
        model.owner, model.missing = Owner(), object()
        with open(tmp_path / "log", "w") as model.log:
            other = Copier().module(model)
        assert other.owner is model.owner and other.log is model.log
        assert other.missing is model.missing
        assert other.lock is model.lock
        del other
        assert deleted == []


def test_a_trace_adds_nothing_to_gradients():
    """Where a forward calls backward, as for an auxiliary loss."""

    def forward(m, x):
        y = m.last(m.first(x).relu())
        y.square().mean().backward(retain_graph=True)
        return y

    model = FromFunction(forward, first=(4, 5), last=(5, 2))
    opt = NGOptimizer(model.parameters(), model=model, lr=0.0)
    model(torch.randn(3, 4)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    opt.step()
    for p, grad in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, grad)
        assert p.grad.grad_fn is None


def test_weights_that_a_forward_replaces():
    def forward(m, x):
        m.key.weight.data = m.key.weight.data * 0.5
        return m.query(x) + m.key(x)

    model = FromFunction(forward, query=(4, 4), key=(4, 4))
    opt = NGOptimizer(model.parameters(), model=model, lr=0.0)
    model(torch.randn(3, 4)).sum().backward()
    before = model.key.weight.detach().clone()
    opt.step()
    assert torch.equal(model.key.weight, before)


def test_functions_in_attributes_keep_their_builtins():
    def scaled(x):
        return x.relu() * float(len(x.shape))

    model = Between(scaled, (4, 5), (5, 2))
    opt = NGOptimizer(model.named_parameters(), model=model)
    model(torch.randn(3, 4)).sum().backward()
    opt.step()
    assert "all connected" in repr(opt)
