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
from tests.ngopt.training import step_with_noise

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
    graphs = []

    def capture(*arguments):
        graphs.append(captured(*arguments))

    monkeypatch.setattr(GraphCache, "_capture", capture)
    monkeypatch.setattr(soap, "supports_cuda_graphs", lambda like, count: True)
    monkeypatch.setattr(SoapRule, "make_update", soap.AcceleratedUpdate)
    return graphs


def trained(steps, renewed=3, **settings):
    """Parameters and their optimizer after some steps."""
    torch.manual_seed(0)
    params = list(cnn().double().parameters())
    opt = NGOptimizer(params, precondition_frequency=renewed, **settings)
    step_with_noise(opt, params, range(steps))
    return params, opt


@pytest.mark.parametrize("total_steps", [None, 60])
@pytest.mark.parametrize("every", [1, 3])
def test_replayed_steps_are_steps(request, total_steps, every):
    settings = {"renewed": every, "total_steps": total_steps}
    expected, opt = trained(50, **settings)
    graphs = request.getfixturevalue("graphs")
    replayed, other = trained(50, **settings)
    assert sum(graph.replays for graph in graphs) == 50 - FIRST
    torch.testing.assert_close(replayed, expected, rtol=1e-12, atol=1e-12)
    states = [opt.state[p] for p in expected]
    others = [other.state[p] for p in replayed]
    torch.testing.assert_close(others, states, rtol=1e-6, atol=1e-9)


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
        step_with_noise(opt, params, [20])
    step_with_noise(opt, params, range(30, 29 + STABLE_STEPS))
    assert sum(graph.replays for graph in graphs) == before
    step_with_noise(opt, params, range(40, 43))
    assert sum(graph.replays for graph in graphs) == before + 3


@pytest.mark.parametrize("every", [2, STABLE_STEPS])
def test_gradients_that_come_and_go_are_no_replay(graphs, every):
    params, opt = trained(20)
    before = len(graphs)
    for number in range(20, 60):
        params[-1].grad = None
        present = params if number // every % 2 else params[:-1]
        step_with_noise(opt, present, [number])
    assert len(graphs) == before


def test_what_cannot_be_captured_is_stepped_all_the_same(request, monkeypatch):
    expected, _ = trained(20)
    request.getfixturevalue("graphs")

    def capture(self, phase, make_buffers, work):
        make_buffers()
        self._is_refused = True

    monkeypatch.setattr(GraphCache, "_capture", capture)
    eager, _ = trained(20)
    torch.testing.assert_close(eager, expected, rtol=1e-12, atol=1e-12)


def replace_averages(params, opt):
    for p in params:
        opt.state[p]["average"] = torch.zeros_like(p)


def halve_learning_rate(params, opt):
    opt.param_groups[0]["lr"] = 0.5


def load_state(params, opt):
    opt.load_state_dict(opt.state_dict())


def drop_gradient(params, opt):
    params.pop(1).grad = None


@pytest.mark.parametrize(
    "change", [replace_averages, halve_learning_rate, load_state, drop_gradient]
)
def test_changes_between_replays(request, change):
    """Soon after a change, and when there are graphs again."""

    def run():
        params, opt = trained(20)
        every = tuple(params)
        change(params, opt)
        tensors = []
        for numbers in (range(20, 22), range(22, 40)):
            step_with_noise(opt, params, numbers)
            tensors += [p.detach().clone() for p in every]
            tensors += [opt.state[p]["average"].clone() for p in every]
        return tensors

    expected = run()
    graphs = request.getfixturevalue("graphs")
    torch.testing.assert_close(run(), expected, rtol=1e-12, atol=1e-12)
    assert graphs


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
    step_with_noise(opt, params, range(3))
    assert copies == [len(params)] * 3
    for p in params:
        p.data = p.data.clone()  # graphs are dropped
    del copies[:]
    step_with_noise(opt, params, range(2))
    assert copies == [len(params)]  # for the graphs that were there
