"""How a module becomes a list of functions: what it takes, what decides on it,
what it gives back."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.networks import FromFunction, edges_of
from tests.zoo import zoo_network


def test_an_input_is_guessed_where_none_is_given():
    model, example = zoo_network("residual")
    exact = build_graph(model, example)
    assert build_graph(model.float()) == exact


def test_parameters_decide_where_a_module_cannot_be_traced():
    """Its argument cannot be guessed."""
    model = FromFunction(lambda m, x: m.b(m.a(x["features"])), a=(3, 4), b=(4, 2))
    message = "as no input for FromFunction could be guessed"
    with pytest.warns(UserWarning, match=message):
        graph = build_graph(model)
    assert [(b.source, b.target) for b in graph.blocks] == [(0, 1), (1, 2)]


class Halting(nn.Module):
    """Applies a layer as often as its own output decides; counts, in a buffer,
    how often it was called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.again = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        x = torch.tanh(self.first(x))
        for _ in range(1 + int(x.abs().sum() > 0)):
            x = torch.tanh(self.again(x))
        return {"logits": self.last(x) * scale}


def test_control_flow_that_depends_on_values(capfd):
    model = Halting()
    for example in (torch.randn(5, 3), {"x": torch.randn(5, 3), "scale": 2.0}):
        graph = build_graph(model, example)
        assert graph.unplaced == () and unconnected(graph) == []
        assert [graph.parameters[b.view.parameter].name for b in graph.weights] == [
            "first.weight", "again.weight", "again.weight", "last.weight",
        ]  # fmt: skip
    assert model.calls == 0
    assert capfd.readouterr() == ("", "")


def wrapped(m, tokens):
    """Moves the last of its tokens that is not 0 to the front, as MBart of transformers
    does."""
    first = tokens.gather(1, (tokens != 0).sum(1, keepdim=True) - 1)
    return m.last(m.table(torch.cat([first, tokens[:, :-1]], 1)))


@pytest.mark.filterwarnings("error")
def test_an_index_of_which_tokens_decide():
    model = FromFunction(wrapped, table=nn.Embedding(7, 3), last=(3, 2))
    graph = build_graph(model, torch.tensor([[3, 1, 0], [2, 0, 0]]))
    assert graph.unplaced == () and unconnected(graph) == []
    assert [block.kind for block in graph.weights] == ["weight", "weight"]


def placed():
    """Makes constants on the device of its input."""

    def forward(m, tokens):
        length = tokens.shape[1]
        places = torch.arange(length, device=tokens.device)
        mask = torch.ones(length, length, device=tokens.device).tril()
        x = mask @ (m.token(tokens) + m.position(places))
        return m.norm(m.first(x) * m.factor)

    tables = {"token": nn.Embedding(11, 6), "position": nn.Embedding(5, 6)}
    others = {"norm": nn.BatchNorm1d(5), "factor": torch.ones(6)}
    return FromFunction(forward, **tables, first=(6, 6), **others)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("default", ["cpu", "meta"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("how", ["set", "context"])
def test_the_default_device_changes_no_graph(default, device, how):
    expected = build_graph(placed(), torch.zeros(2, 5, dtype=torch.long))
    assert unconnected(expected) == []
    model = placed().to(device)
    tokens = torch.zeros(2, 5, dtype=torch.long, device=device)
    if how == "context":
        with torch.device(default):
            graph = build_graph(model, tokens)
    else:
        torch.set_default_device(default)
        try:
            graph = build_graph(model, tokens)
        finally:
            torch.set_default_device(None)
    assert (graph.blocks, graph.biases) == (expected.blocks, expected.biases)


def test_a_guess_draws_no_random_numbers_of_the_user():
    state = torch.get_rng_state()
    build_graph(zoo_network("residual")[0].float())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_examples_and_lazy_modules():
    with pytest.raises(ValueError, match="Linear does not run on the example input"):
        build_graph(nn.Linear(3, 2), torch.zeros(2, 5))
    message = r"'1.weight' of a lazy module has no shape yet"
    with pytest.raises(ValueError, match=message):
        build_graph(nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="expected a module with example_input"):
        build_graph(nn.Linear(3, 2).parameters(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one parameter"):
        build_graph(nn.ReLU(), torch.zeros(2))
    lazy = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    graph = build_graph(lazy, torch.zeros(1, 3))
    assert isinstance(lazy[1].weight, nn.parameter.UninitializedParameter)
    lazy(torch.zeros(1, 3))
    assert graph == build_graph(lazy, torch.zeros(1, 3))
    assert graph.numel == 14


def test_lazy_buffers():
    lazy = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)
    )
    message = r"'1.running_mean' of a lazy module has no shape yet"
    with pytest.raises(ValueError, match=message):
        build_graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(affine=False)))
    example = {"input": torch.randn(2, 3, 5, 5)}
    graph = build_graph(lazy, example)
    assert isinstance(lazy[1].running_mean, nn.parameter.UninitializedBuffer)
    lazy(torch.randn(2, 3, 5, 5))
    assert replace(graph, groups=()) == replace(build_graph(lazy, example), groups=())


def test_a_large_example_is_cut_down():
    model, example = zoo_network("residual")
    large = build_graph(model, example.repeat(2000, 1, 1, 1))
    assert large == build_graph(model, example)


def test_regions_are_followed_whether_exported_or_recorded():
    model, example = zoo_network("regions")
    expected = build_graph(model, example)
    assert edges_of(expected, "exact") == [("weight", "frozen")]
    assert unconnected(expected) == []

    class Checked(type(model)):
        def forward(self, x):
            assert x.sum() < 1e9
            return super().forward(x) if x.isfinite().all() else x

    model.__class__ = Checked
    graph = build_graph(model, example)
    assert (graph.blocks, graph.biases) == (expected.blocks, expected.biases)
    assert torch.is_grad_enabled()


def test_a_buffer_that_needs_the_whole_example():
    model = FromFunction(
        lambda m, x: m.last(torch.tanh(m.first(x))[m.order]),
        first=(3, 4),
        last=(4, 2),
        order=torch.tensor([4, 2, 0, 1, 3]),
    )
    graph = build_graph(model, torch.randn(5, 3))
    assert unconnected(graph) == []
    assert [g.role for g in graph.groups] == ["input", "hidden", "output"]


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def test_outputs_in_a_dataclass():
    def output(m, x):
        return Output(m.last(torch.tanh(m.first(x))))

    model = FromFunction(output, first=(3, 4), last=(4, 2))
    graph = build_graph(model, torch.randn(5, 3))
    assert graph.unplaced == ()
    assert [g.role for g in graph.groups] == ["input", "hidden", "output"]
