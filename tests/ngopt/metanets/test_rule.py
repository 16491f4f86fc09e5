"""Steps of a rule on networks of any size: piece by piece and at once."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import chain, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ngopt import NGOptimizer, build_graph, chunking, load_pretrained
from ngopt.functional import Hyper, update_all
from ngopt.metanets import METANETS, NeuralFunctional, NeuralGraphGNN
from ngopt.metanets.gnn import GNNConfig
from ngopt.metanets.graph_data.feature_sources import WholeValues
from ngopt.metanets.graph_data.graph_tensors import graph_tensors
from ngopt.metanets.layers.aggregation import TO_TARGETS, MessageStatistics
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer, statistics
from ngopt.metanets.nfn import chain_of
from ngopt.metanets.stepping import rule as metanet_rule
from ngopt.metanets.stepping.context import CONTEXT
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.metanets.stepping.rule import MetanetRule
from tests.equivariance import random_values
from tests.graph_checks import assert_equal
from tests.metanets import metanet_for
from tests.networks import cnn, mlp
from tests.zoo import GPT, zoo_graph

# groups of a convolution, tied weights, several slots and biases of several kinds,
# heads
NETWORKS = ["grouped", "gpt", "lstm", "attention"]


@cache
def small_graph(name):
    """Of a network of the zoo; the transformer has one layer, as it is read edge by
    edge."""
    if name == "gpt":
        return build_graph(GPT(5, 4, 2, 3, 1).double(), torch.randint(5, (2, 3)))
    return build_graph(cnn()) if name == "cnn" else zoo_graph(name)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def hyper(graph):
    n = len(graph.parameters)
    return Hyper([0.7] * n, [0.1] * n)


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), limit=st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_block_slices_cover_every_edge_once(shape, limit):
    cuts = list(chunking.block_slices(shape, limit))
    ranges = [[range(piece.start, piece.stop) for piece in cut] for cut in cuts]
    edges = [list(product(*some)) for some in ranges]
    assert sorted(chain(*edges)) == list(product(*map(range, shape)))
    assert max(map(len, edges)) <= limit


def statistics_of(messages):
    return MessageStatistics.of(messages, TO_TARGETS, statistics(messages, TO_TARGETS))


def test_merged_statistics_are_those_of_all_messages():
    messages = 5 + torch.randn(2, 3, 7, 1, 4, dtype=torch.float64)
    whole = statistics_of(messages)
    found = MessageStatistics.merged(*map(statistics_of, messages.split([2, 5], dim=2)))
    assert found.degree == whole.degree == 7
    for a, b in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("limit", [1, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_network_in_chunks_equals_whole_blocks(name, limit, keeps, monkeypatch):
    """With all options, and with edge states that are stored or recomputed."""
    monkeypatch.setitem(chunking.CACHED_BYTES, "cpu", 1e9 if keeps else 0)
    graph = small_graph(name)
    layers = [PNALayer(6, log_degree=1.5) for _ in range(2)]
    options = GraphNetworkOptions(activations=True, global_feature=True)
    network = GraphNetwork(3, 2, 6, layers, (3, 3), options).double()
    values = [torch.randn(*s.shape, 3, dtype=torch.float64) for s in graph.parameters]
    expected = graph.scatter(network(graph.gather(values), graph))
    found = graph.scatter(in_parts(network, graph, values, limit))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def in_parts(network, graph, values, limit):
    gathered = graph.gather(values)
    parts = graph_tensors(graph, network.kernel, values[0], limit)
    assert sum(len(block.chunks) for block in parts.blocks) > len(parts.blocks)
    out = [[x.new_zeros(*x.shape[:-1], 2) for x in some] for some in gathered]
    for place, piece in network.pieces(WholeValues(gathered, torch.Size()), parts):
        if isinstance(place, int):
            out[0][place] = piece
        else:
            place.of(out[1][place.block]).copy_(piece)
    return type(gathered)(*map(tuple, out))


@torch.no_grad()
@pytest.mark.parametrize("metanet", sorted(METANETS))
@pytest.mark.parametrize("name", [*NETWORKS, "cnn"])
def test_large_networks_step_like_small_ones(name, metanet, monkeypatch):
    """With a parameter that is absent, and a gradient that is not finite."""
    graph = small_graph(name)
    if metanet == "nfn" and chain_of(graph) is None:
        message = r"nfn: expected a plain chain of layers; got .* \d+ weights"
        with pytest.raises(ValueError, match=message):
            MetanetRule(NeuralFunctional().double(), graph)
        return
    generator = torch.Generator().manual_seed(0)
    params = random_values(graph, generator)
    grads = [random_values(graph, generator) for _ in range(3)]
    grads[1][2] = None
    grads[2][0].view(-1)[1] = torch.nan
    rule = MetanetRule(metanet_for(metanet, graph), graph)
    expected = steps(rule, params, grads)
    in_place = steps(MetanetRule(rule.metanet, graph), params, grads, in_place=True)
    assert_same_steps(in_place, expected)
    monkeypatch.setattr(metanet_rule, "SMALL_NETWORK", 0)
    sizes = {"CACHED_BYTES": 0, "EDGES": 11, "ELEMENTS": 5}
    sizes |= dict.fromkeys(("CONCATENATED_ELEMENTS", "UPDATED_ELEMENTS"), 20)
    for name, most in sizes.items():
        monkeypatch.setitem(getattr(chunking, name), "cpu", most)
    for in_place in (False, True):
        found = steps(MetanetRule(rule.metanet, graph), params, grads, in_place)
        assert_same_steps(found, expected)


def assert_same_steps(found, expected, rtol=1e-9, atol=1e-14):
    close = {"rtol": rtol, "atol": atol, "equal_nan": True}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


def steps(rule, params, grads, in_place=False):
    """The deltas of every step, zeros for absent parameters."""
    state, all_deltas = rule.init(params), []
    for some in grads:
        deltas: list = [torch.zeros_like(p) for p in params]
        changes = rule.update(some, state, params, hyper(rule.graph), in_place)
        for c in chain.from_iterable(changes):
            c.select(deltas[c.position]).copy_(c.delta)
            state[c.position] = c.record
        all_deltas.append(deltas)
    return all_deltas


@torch.no_grad()
@pytest.mark.parametrize("metanet", ["ff", "lstm", "ng-gnn", "ng-t"])
def test_parameters_without_elements(metanet):
    """A layer may have no neurons, as an adapter of rank 0."""
    shapes = (4, 3), (0, 4), (0,), (2, 4)
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    weights = metanet_for(metanet, build_graph(nn.Linear(3, 4)))
    opt = NGOptimizer(params, rule=weights)
    before = [p.clone() for p in params]
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    for p, old in zip(params, before, strict=True):
        assert p.isfinite().all()
        assert not p.numel() or not torch.equal(p, old)


class TestCooldown:
    """With a known number of steps, updates are multiplied by the gain and fall to zero
    over the last share of them."""

    def trained(self, scheduler=None, cooldown=None, **settings):
        model = mlp(3, 4, 2).float()
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.3)
        settings["rule"] = replace(load_pretrained("ff"), cooldown=cooldown)
        opt = NGOptimizer(model.parameters(), weight_decay=2.0, **settings)
        if scheduler:
            scheduler(opt)
        moved = []
        for _ in range(4):
            before = parameters_to_vector(model.parameters()).detach().clone()
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.5)
            opt.step()
            after = parameters_to_vector(model.parameters()).detach()
            moved.append((after - before).abs().mean().item())
            vector_to_parameters(before, model.parameters())
        return torch.tensor(moved)

    def test_factor_of_updates_and_decay(self):
        plain, cooldown = self.trained(total_steps=4), Cooldown(1.5, 0.5)
        assert torch.equal(self.trained(cooldown=cooldown), plain)  # of unknown length
        found = self.trained(cooldown=cooldown, total_steps=4)
        expected = plain * torch.tensor([1.5, 1.5, 1.2, 0.6])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
        assert plain.min() > 1e-4

    def test_a_scheduler_replaces_it(self):
        def attach(opt):
            torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)

        found = self.trained(attach, Cooldown(1.5, 0.5), total_steps=4)
        assert torch.equal(found, self.trained(total_steps=4))

    def test_steps_beyond_the_horizon_warn(self):
        with pytest.warns(UserWarning, match="step 4 exceeds total_steps=2"):
            self.trained(cooldown=Cooldown(1.0, 1.0), total_steps=2)

    def test_errors(self):
        with pytest.raises(ValueError, match="expected a gain >= 0; got -1"):
            Cooldown(-1.0, 0.5)
        for share in (0.0, 1.5):
            with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]; got"):
                Cooldown(1.0, share)


class TestGraphEvery:
    """The graph is read every few steps; its context is stored in between."""

    def test_context_changes_every_few_steps(self):
        graph = build_graph(cnn())
        generator = torch.Generator().manual_seed(0)
        params = random_values(graph, generator)
        rule = MetanetRule(self.metanet(3), graph)
        state, contexts = rule.init(params), []
        with torch.no_grad():
            for _ in range(7):
                grads = random_values(graph, generator)
                _, state = update_all(rule, grads, state, params, hyper(graph))
                contexts.append(state[0][CONTEXT])
        assert contexts[0].shape == (*params[0].shape, 4)
        assert contexts[0].dtype == torch.bfloat16
        for i in range(1, 7):
            assert torch.equal(contexts[i], contexts[i - 1]) == (i % 3 != 0), i

    def test_large_networks_step_like_small_ones(self, monkeypatch):
        graph = build_graph(cnn())
        generator = torch.Generator().manual_seed(0)
        params = random_values(graph, generator)
        grads = [random_values(graph, generator) for _ in range(4)]
        with torch.no_grad():
            expected = steps(MetanetRule(self.metanet(2), graph), params, grads)
            monkeypatch.setattr(metanet_rule, "SMALL_NETWORK", 0)
            found = steps(MetanetRule(self.metanet(2), graph), params, grads, True)
        # rounding to bfloat16 may go either way
        assert_same_steps(found, expected, rtol=0.05, atol=1e-5)

    def test_resuming_is_exact(self):
        def trained(model, opt, steps):
            for k in steps:
                opt.zero_grad()
                model(torch.full((2, 3), 0.3 * k + 1)).square().sum().backward()
                opt.step()

        def optimizer(model):
            return NGOptimizer(model.parameters(), rule=self.metanet(3))

        whole = mlp(3, 4, 2).float()
        half = deepcopy(whole)
        trained(whole, optimizer(whole), range(5))
        second, again = optimizer(half), optimizer(half)
        trained(half, second, range(2))
        again.load_state_dict(second.state_dict())
        trained(half, again, range(2, 5))
        assert_equal(whole.parameters(), half.parameters())

    def metanet(self, every):
        torch.manual_seed(0)
        return NeuralGraphGNN(GNNConfig(width=8, d_out=4, graph_every=every)).double()
