"""Graphs of an optimizer: inferred, given, or traced from a first forward pass."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.metanets import FeedForward
from tests.graph_checks import assert_equal
from tests.networks import CNN_INPUT, cnn
from tests.ngopt.training import WEIGHTS, both_copies, same, snapshot


class Parallel(nn.Module):
    """Has positional and named arguments; parameters do not determine its topology."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 2)

    def forward(self, x, *, scale):
        return self.out(self.drop(self.norm(self.left(x) + scale * self.right(x))))


METANET = FeedForward()


def optimizer(params, **kwargs):
    return NGOptimizer(params, rule=METANET, **kwargs)


def traced(model=None):
    model = model or Parallel()
    return model, optimizer(model.parameters(), model=model)


def forward_backward(model, **extra):
    model(torch.randn(3, 4), scale=torch.tensor(2.0), **extra).sum().backward()


def expected_graph(model):
    inputs = {"x": torch.randn(3, 4), "scale": torch.tensor(2.0)}
    return build_graph(copy.deepcopy(model), inputs)


def test_the_first_forward_pass_gives_the_inputs():
    model, opt = traced()
    assert repr(opt).endswith("graph: not traced yet; run one training step")
    forward_backward(model)
    assert not model._forward_pre_hooks
    opt.step()
    assert opt.graph == expected_graph(model)
    assert not any(opt.graph.unplaced)
    assert repr(opt).endswith("parameters in 8 tensors, all connected")
    graph = opt.graph
    forward_backward(model)
    opt.step()
    assert opt.graph is graph


def test_tracing_changes_no_training_run():
    models = []
    for is_traced in (False, True):
        torch.manual_seed(0)
        model = Parallel()
        opt = optimizer(model.parameters(), model=model if is_traced else None)
        for _ in range(3):
            opt.zero_grad()
            forward_backward(model)
            opt.step()
        assert model.training
        models.append(model)
    assert_equal(*(model.state_dict().values() for model in models))


def test_inputs_are_detached_and_released():
    model, opt = traced()
    x = torch.randn(3, 4, requires_grad=True)
    given = weakref.ref(x.grad_fn or x)
    model(2 * x, scale=1.0).sum().backward()
    recorded = opt._binding.source.recorder.inputs.args[0]
    assert recorded.grad_fn is None
    assert not recorded.requires_grad
    kept = weakref.ref(recorded)
    opt.step()
    del recorded, x
    gc.collect()
    assert kept() is None
    assert given() is None


def test_passes_without_gradients_are_not_recorded():
    model, opt = traced()
    with torch.no_grad():
        model(torch.randn(3, 4), scale=1.0)
    assert opt._binding.source.awaits_forward
    forward_backward(model)
    assert not opt._binding.source.awaits_forward


def test_a_graph_read_before_the_first_forward_pass_is_replaced():
    model, opt = traced()
    with pytest.warns(UserWarning, match="no input for Parallel could be guessed"):
        guess = opt.graph
    forward_backward(model)
    assert opt.graph == expected_graph(model)
    assert opt.graph != guess


def test_a_step_without_a_forward_pass_guesses_the_input():
    model, opt = traced(cnn())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.graph == build_graph(model)
    assert not model._forward_pre_hooks


def test_forward_passes_under_torch_func_are_not_recorded():
    model, opt = traced(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    params = dict(model.named_parameters())

    def loss(q, x):
        return torch.func.functional_call(model, q, (x,)).sum()

    of_each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
    grads = of_each(params, torch.randn(5, 3))
    for name, p in params.items():
        p.grad = grads[name].sum(0)
    opt.step()
    assert opt.graph == build_graph(model)


@pytest.mark.parametrize("how", ["parameters", "model"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_lazy_modules(weights, how):
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    given = model if how == "model" else None
    opt = NGOptimizer(model.parameters(), rule=weights, model=given)
    assert repr(opt).endswith("graph: not traced yet; run one training step")
    model(torch.randn(5, 3)).sum().backward()
    before = snapshot(model)
    opt.step()
    assert not same(model, before)
    assert repr(opt).endswith("26 parameters in 4 tensors, all connected")
    early = optimizer(nn.LazyLinear(4).parameters())
    message = "'parameter 0'.*of a lazy module that has no shape yet"
    with pytest.raises(ValueError, match=message):
        early.graph  # noqa: B018


def test_wrapped_models_are_unwrapped():
    inner = Parallel()
    model = nn.DataParallel(inner, device_ids=[])
    opt = optimizer(inner.parameters(), model=model)
    forward_backward(model)
    opt.step()
    assert opt.graph == expected_graph(inner)


@pytest.mark.parametrize("given", ["compiled", "plain"])
def test_compiled_models(given):
    inner = cnn()
    model = torch.compile(inner, backend="eager", fullgraph=True)
    opt = optimizer(inner.parameters(), model=model if given == "compiled" else inner)
    model(torch.randn(2, *CNN_INPUT)).sum().backward()
    assert opt._binding.source.has_new_inputs == (given == "compiled")
    opt.step()
    assert opt.graph.groups[-1].role == "output"
    assert len(opt.graph.blocks) == len(build_graph(inner).blocks)


def test_after_a_failed_trace_the_graph_is_inferred(monkeypatch):
    model, opt = traced()
    forward_backward(model)

    def fail(source, example_input=None):
        if example_input is not None:
            raise RuntimeError("no rule")
        return build_graph(source)

    monkeypatch.setattr("ngopt.optimizer.graph_source.build_graph", fail)
    with pytest.warns(UserWarning, match="as tracing Parallel failed: no rule"):
        opt.step()
    assert len(opt.graph.parameters) == 8


@both_copies
@pytest.mark.parametrize("is_traced", [False, True])
def test_copies_that_grow_keep_the_graph(duplicate, is_traced):
    model = Parallel()
    opt = optimizer([model.left.weight, model.right.weight], model=model)
    if is_traced:
        forward_backward(model)
        opt.step()
    model, opt = duplicate((model, opt))
    opt.add_param_group({"params": [model.out.weight]})
    opt.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    forward_backward(model)
    opt.step()
    whole = expected_graph(model)
    assert opt.graph.parameters[: len(whole.parameters)] == whole.parameters
    first = [spec.name for spec in opt._binding.parameters(opt).graph.parameters[:4]]
    assert first == ["left.weight", "right.weight", "out.weight", "parameter 3"]
    assert not model._forward_pre_hooks


def test_a_model_without_a_training_forward_is_named_in_the_warning():
    class Trainer(Parallel):
        def training_step(self, x):
            return self.left(x).sum()

    model, opt = traced(Trainer())
    model.training_step(torch.randn(2, 4)).backward()
    with pytest.warns(UserWarning) as warned:
        opt.step()
    (message,) = [str(warning.message) for warning in warned]
    assert message.startswith("NGOptimizer: ")
    assert "model=" in message and "graph=build_graph(" in message
    assert "give example_input" not in message


def test_the_reason_of_a_failed_trace_is_one_line():
    class Sparse(nn.Linear):
        def forward(self, x, adjacency):
            return torch.sparse.mm(adjacency.coalesce(), super().forward(x))

    model, opt = traced(Sparse(3, 4))
    model(torch.randn(5, 3), torch.eye(5).to_sparse()).sum().backward()
    with pytest.warns(UserWarning, match="as tracing Sparse failed") as warned:
        opt.step()
    (message,) = [str(warning.message) for warning in warned]
    assert "\n" not in message and len(message) < 400


def unconnected():
    return [nn.Parameter(torch.ones(n, n + 7)) for n in range(2, 9)]


def test_unconnected_parameters_are_logged_once(caplog):
    params = unconnected()
    opt = optimizer(params)
    with caplog.at_level(logging.WARNING, logger="ngopt"):
        line = repr(opt).splitlines()[-1]
        sum(p.sum() for p in params).backward()
        opt.step()
        opt.step()
    assert line == (
        "graph inferred from names and shapes; 6 of 7 tensors are unconnected "
        "(parameter 0, parameter 1, parameter 2, parameter 3, parameter 4, ...). "
        "They are still optimized."
    )
    (record,) = caplog.records
    hint = "Pass model=model to trace the graph."
    assert record.getMessage() == f"NGOptimizer: {line} {hint}"


@pytest.mark.parametrize(
    ("weights", "level", "advice"),
    [
        ("default", logging.INFO, "lowers losses by 0 to 3 %"),
        (METANET, logging.WARNING, "Pass model=model"),
    ],
)
def test_unconnected_parameters_are_a_warning_if_the_weights_read_the_graph(
    weights, level, advice, caplog
):
    with caplog.at_level(logging.INFO, logger="ngopt"):
        NGOptimizer(unconnected(), rule=weights).graph  # noqa: B018
    assert [record.levelno for record in caplog.records] == [level]
    assert advice in caplog.text


def test_parameters_that_a_trace_leaves_unconnected_are_not_called_inferred(caplog):
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "unused": nn.Linear(2, 2)})
    model.forward = lambda x: model["a"](x)
    opt = optimizer(model.parameters(), model=model)
    with caplog.at_level(logging.WARNING, logger="ngopt"):
        model(torch.randn(5, 3)).sum().backward()
        opt.step()
    line = (
        "graph: 2 of 4 tensors are unconnected (unused.weight, unused.bias). "
        "They are still optimized."
    )
    assert repr(opt).splitlines()[-1] == line
    (record,) = caplog.records
    assert record.getMessage() == f"NGOptimizer: {line}"


class TestErrors:
    def test_another_instance(self):
        model = Parallel()
        message = r"model: .*'parameter 0', of shape \(4, 4\), is none"
        with pytest.raises(ValueError, match=message):
            optimizer(model.parameters(), model=Parallel())
        mixed = [("ours", model.left.weight), ("theirs", Parallel().left.weight)]
        with pytest.raises(ValueError, match=r"model: .*'theirs'"):
            optimizer(mixed, model=model)

    def test_arguments_of_other_types(self):
        params = list(Parallel().parameters())
        message = "model: expected a .*Module; got the class Parallel"
        with pytest.raises(ValueError, match=message):
            optimizer(params, model=Parallel)
        message = "graph: expected a NeuralGraph; got Parallel"
        with pytest.raises(ValueError, match=message):
            optimizer(params, graph=Parallel())
        others = (None, "NoneType"), (3, "int"), (nn.Linear(2, 2), "Linear")
        for weights, got in others:
            with pytest.raises(ValueError, match=f"rule: expected .*; got {got}"):
                NGOptimizer(params, rule=weights)


@pytest.mark.parametrize("name", ["default", "ff"])
def test_repr_names_the_rule_and_omits_names_of_parameters(name):
    opt = NGOptimizer(nn.Linear(2, 2).named_parameters(), rule=name)
    assert "param_names" in opt.param_groups[0]
    for text in (repr(opt), repr(copy.deepcopy(opt))):
        assert f"rule: {name}\n" in text and "bias" not in text
        assert "    maximize: False\n    precondition_frequency: None" in text
