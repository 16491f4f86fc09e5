"""Transforms of torch.func inside of a forward, and other threads during a trace."""

import threading
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

from ngopt import NGOptimizer, build_graph
from ngopt.graph.connectivity import unconnected
from tests.networks import FromFunction


class Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output


def network(forward):
    return FromFunction(forward, first=(6, 5), norm=nn.LayerNorm(5), last=(5, 3))


def of_rows(m, x):
    return m.last(m.norm(Doubled.apply(m.first(x))).relu())


def test_a_layer_of_each_row_is_a_layer():
    def by_row(m, x):
        return vmap(lambda row: of_rows(m, row))(x)

    graph, plain = (
        build_graph(network(f), torch.randn(4, 6)) for f in (by_row, of_rows)
    )
    assert unconnected(graph) == []
    assert graph.blocks == plain.blocks


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_of_each_image_is_a_convolution(layer):
    def of_images(m, x):
        return m.last(m.norm(m.first(x)).relu().mean((-2, -1)))

    def by_image(m, x):
        return vmap(lambda image: of_images(m, image[None])[0])(x)

    layers = {"first": layer(2, 4, 3), "norm": nn.GroupNorm(2, 4), "last": (4, 3)}
    kinds = []
    for forward in (of_images, by_image):
        model = FromFunction(forward, **layers)
        graph = build_graph(model, torch.randn(3, 2, 5, 5))
        assert unconnected(graph) == []
        kinds.append([(b.kind, b.shape) for b in graph.weights if b.kind == "weight"])
    assert kinds[0] == kinds[1]


def test_an_ensemble_has_a_network_for_each_member():
    members = [
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in "abc"
    ]
    parameters, _ = stack_module_state(members)
    base = [members[0].to("meta")]  # a list, so that it has no parameters here

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.stacked = nn.ParameterList(parameters.values())

        def forward(self, x):
            def member(values, x):
                state = dict(zip(parameters, values, strict=True))
                return functional_call(base[0], state, x)

            return vmap(member, (0, None))(list(self.stacked), x)

    graph = build_graph(Ensemble(), torch.randn(4, 6))
    assert unconnected(graph) == []
    assert [(b.source, b.target) for b in graph.weights] == [
        *((0, 1), (0, 2), (0, 3)),
        *((1, 4), (2, 5), (3, 6)),
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "forward",
    [
        lambda f, x: sum(jvp(f, (x,), (x,))),
        lambda f, x: vmap(jacrev(f))(x),
        lambda f, x: grad(lambda x: f(x).square().sum())(x),
        lambda f, x: vjp(f, x)[0],
        lambda f, x: vmap(f)(x) if x.sum() < 1e9 else x,
    ],
)
def test_other_transforms_connect_all_parameters(forward):
    def whole(m, x):
        return forward(lambda x: m.last(m.first(x).tanh()), x)

    model = FromFunction(whole, first=(6, 5), last=(5, 3))
    graph = build_graph(model, torch.randn(4, 6))
    assert {"first.weight", "first.bias", "last.weight"} & {
        *unconnected(graph)
    } == set()
    assert torch.randn(2).requires_grad_().sum().backward() is None


class Shared(nn.Module):
    """Its layer has two names, for which torch.export replaces attributes."""

    def __init__(self, meanwhile=None):
        super().__init__()
        self.layer = self.again = nn.Linear(4, 4)
        self.meanwhile = meanwhile

    def forward(self, x):
        if self.meanwhile is not None and torch.compiler.is_exporting():
            thread = threading.Thread(target=self.meanwhile)
            thread.start()
            thread.join()
            return self.again(self.layer(x).relu())
        assert self.layer is self._modules["layer"]
        assert not (torch.compiler.is_compiling() or torch.compiler.is_exporting())
        return self.again(self.layer(x).relu())


def train_another(model):
    opt = NGOptimizer(model.named_parameters(), total_steps=3)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        opt.step()
    TRAINED.append(opt.state_dict()["state"][0]["step"])


TRAINED = []


def test_another_thread_trains_while_a_module_is_exported():
    def meanwhile():
        train_another(Shared())

    build_graph(Shared(meanwhile), torch.randn(3, 4))
    assert TRAINED == [3]


class Remembering(nn.Sequential):
    seen: ClassVar[list] = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


def test_threads_trace_one_after_the_other():
    errors = []
    seen = Remembering.seen

    def train():
        model = Remembering(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        opt = NGOptimizer(model.named_parameters(), model=model, total_steps=2)
        try:
            for _ in range(2):
                opt.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                opt.step()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not torch.compiler.is_compiling()
    # a class has its own attributes again
    assert Remembering.seen is seen and {*map(type, seen)} == {torch.Tensor}
