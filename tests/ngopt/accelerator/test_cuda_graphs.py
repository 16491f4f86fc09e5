"""CUDA graphs of a step. They are emulated on a CPU: a graph does its work again as it
was at the capture, on the tensors and numbers of that step."""

import pytest
import torch

from ngopt import NGOptimizer
from ngopt.accelerator import cuda_graphs, soap
from ngopt.accelerator.cuda_graphs import STABLE_STEPS, GraphCache
from ngopt.soap.first_steps import OBSERVED_STEPS
from ngopt.soap.soap import SoapRule
from tests.networks import cnn

FIRST = OBSERVED_STEPS + STABLE_STEPS  # step that is replayed


class Graph:
    def __init__(self, work):
        self.work, self.replays = work, 0

    def replay(self):
        self.replays += 1
        self.work()


def captured(self, phase, make_buffers, work):
    """In place of `GraphCache._capture`."""
    self._buffers = buffers = self._buffers or make_buffers()

    def whole():
        work.args[0].bases.clear()  # made anew in a graph
        work(buffers)

    self._graphs[phase] = Graph(whole)
    return self._graphs[phase]


@pytest.fixture
def graphs(monkeypatch):
    """All that were captured; steps are computed as on a device."""
    found = []

    def capture(*arguments):
        found.append(captured(*arguments))

    monkeypatch.setattr(GraphCache, "_capture", capture)
    monkeypatch.setattr(soap, "supports_cuda_graphs", lambda like, count: True)
    monkeypatch.setattr(SoapRule, "make_update", soap.AcceleratedUpdate)
    return found


def trained(steps, renewed=3, model=None, **settings):
    """Parameters and their optimizer after some steps."""
    torch.manual_seed(0)
    model = model or cnn().double()
    params = list(model.parameters())
    opt = NGOptimizer(params, renew_every=renewed, **settings)
    step(opt, params, range(steps))
    return params, opt


def step(opt, params, numbers):
    """Steps with gradients that are elsewhere every time."""
    kept = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
            kept.append(p.grad)
        opt.step()


def check_same_with_graphs(run, request):
    """That tensors of a training are the same with graphs, some of which are made."""
    expected = run()
    graphs = request.getfixturevalue("graphs")
    for p, q in zip(expected, run(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)
    assert graphs


@pytest.mark.parametrize("total_steps", [None, 60])
@pytest.mark.parametrize("every", [1, 3])
def test_replayed_steps_are_steps(request, total_steps, every):
    settings = {"renewed": every, "total_steps": total_steps}
    expected, opt = trained(50, **settings)
    graphs = request.getfixturevalue("graphs")
    found, other = trained(50, **settings)
    assert sum(graph.replays for graph in graphs) == 50 - FIRST
    for p, q in zip(expected, found, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)
        for key, value in opt.state[p].items():
            torch.testing.assert_close(other.state[q][key], value, rtol=1e-6, atol=1e-9)


def test_each_phase_of_the_renewals_has_a_graph(graphs):
    trained(60, renewed=3)
    assert len(graphs) == 3


def test_rounds_that_do_not_come_again_have_no_graph(graphs):
    trained(70, renewed=8)
    assert len(graphs) == 3 + 4 + 8  # rounds of so many steps; not of 5, 6 and 7


def test_weights_in_other_places_are_no_replay(graphs):
    params, opt = trained(20)
    before = sum(graph.replays for graph in graphs)
    assert before == 20 - FIRST
    for p in params:
        p.data = p.data.clone()
        step(opt, params, range(20, 21))
    step(opt, params, range(30, 29 + STABLE_STEPS))
    assert sum(graph.replays for graph in graphs) == before
    step(opt, params, range(40, 43))
    assert sum(graph.replays for graph in graphs) == before + 3


@pytest.mark.parametrize("every", [2, STABLE_STEPS])
def test_gradients_that_come_and_go_are_no_replay(graphs, every):
    params, opt = trained(20)
    before = len(graphs)
    for number in range(20, 60):
        some = params if number // every % 2 else params[:-1]
        params[-1].grad = None
        step(opt, some, range(number, number + 1))
    assert len(graphs) == before


def test_an_average_that_was_replaced_is_followed(request):
    def run():
        params, opt = trained(30)
        for p in params:
            opt.state[p]["average"] = torch.zeros_like(p)
        step(opt, params, range(30, 32))
        return [opt.state[p]["average"] for p in params]

    check_same_with_graphs(run, request)


def test_autograd_sees_that_weights_have_changed(graphs):
    params, opt = trained(30)
    versions = [p._version for p in params]
    step(opt, params, range(30, 31))
    assert all(p._version > v for p, v in zip(params, versions, strict=True))


def test_what_cannot_be_captured_is_stepped_all_the_same(request, monkeypatch):
    expected, _ = trained(20)
    request.getfixturevalue("graphs")

    def capture(self, phase, make_buffers, work):
        make_buffers()
        self._is_refused = True

    monkeypatch.setattr(GraphCache, "_capture", capture)
    found, _ = trained(20)
    for p, q in zip(expected, found, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)


def test_settings_may_change_between_replays(request):
    def run():
        params, opt = trained(20)
        opt.param_groups[0]["lr"] = 0.5
        step(opt, params, range(20, 24))
        return params

    check_same_with_graphs(run, request)


def test_a_loaded_state_is_no_replay(request):
    def run():
        params, opt = trained(20)
        opt.load_state_dict(opt.state_dict())
        step(opt, params, range(20, 40))
        return params

    check_same_with_graphs(run, request)


def test_a_parameter_without_a_gradient_is_no_replay(request):
    def run():
        params, opt = trained(20)
        params[1].grad = None
        step(opt, [p for p in params if p.grad is not None], range(20, 40))
        return params

    check_same_with_graphs(run, request)


def test_an_optimizer_with_graphs_can_be_saved(graphs, tmp_path):
    _, opt = trained(20)
    torch.save(opt, tmp_path / "opt.pt")
    torch.load(tmp_path / "opt.pt", weights_only=False)


def test_gradients_are_copied_once_a_step(graphs, monkeypatch):
    copies = []
    plain = cuda_graphs._foreach_copy_

    def counted(targets, sources):
        copies.append(len(sources))
        plain(targets, sources)

    monkeypatch.setattr(cuda_graphs, "_foreach_copy_", counted)
    params, opt = trained(FIRST + 1)
    del copies[:]
    step(opt, params, range(3))
    assert copies == [len(params)] * 3
    for p in params:
        p.data = p.data.clone()  # graphs are dropped
    del copies[:]
    step(opt, params, range(2))
    assert copies == [len(params)]  # for the graphs that were there
