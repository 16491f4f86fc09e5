"""Updates without autograd are those with it, to rounding."""

import pytest
import torch

from ngopt import build_graph, chunking
from ngopt.functional import Hyper
from ngopt.metanets import METANETS
from ngopt.metanets.features import MOMENTA, preprocess
from ngopt.metanets.feedforward import FeedForwardConfig
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.stepping import rule as metanet_rule
from ngopt.metanets.stepping.rule import MetanetRule
from ngopt.metanets.update_mlp import Predictor
from tests.user_classes import Halved

CAPACITY, USED = 7, 5


@torch.no_grad()
def differences(metanet: Metanet, predictor: Predictor) -> torch.Tensor:
    """Between predicted updates of elements and `updates`, relative to the largest
    update."""
    generator, d = torch.Generator().manual_seed(0), metanet.d_context
    random = torch.randn(USED, 14 + d, dtype=torch.float64, generator=generator)
    features, context = random.split([14, metanet.d_context], dim=1)
    predictor.features(USED).copy_(features.mT)
    expected = metanet.updates(features, context if metanet.d_context else None)
    found = predictor.predicted(USED, context if metanet.d_context else None)
    return (found - expected).abs() / expected.abs().max()


@pytest.mark.parametrize("name", sorted(METANETS))
def test_every_metanet(name):
    torch.manual_seed(0)
    metanet = METANETS[name]().double()
    predictor = Predictor(metanet.update_mlp(), CAPACITY)
    predictor.read_weights()
    assert differences(metanet, predictor).max() < 1e-13
    with torch.no_grad():
        for p in metanet.parameters():
            p.add_(0.1)
    assert differences(metanet, predictor).max() > 1e-3
    predictor.read_weights()
    assert differences(metanet, predictor).max() < 1e-13


@pytest.mark.parametrize("hidden", [1, 2])
def test_few_elements_at_a_time(monkeypatch, hidden):
    most = dict.fromkeys(chunking.HIDDEN_ELEMENTS, hidden)
    monkeypatch.setattr(chunking, "HIDDEN_ELEMENTS", most)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    metanet = METANETS["ff"]().double()
    predictor = Predictor(metanet.update_mlp(), CAPACITY)
    predictor.read_weights()
    assert differences(metanet, predictor).max() < 1e-13


class Sum(Metanet):
    def __init__(self):
        super().__init__(FeedForwardConfig())
        self.factor = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def updates(self, features, context):
        assert context is None
        return self.factor * features.sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("small_network", [0, 100])
@pytest.mark.parametrize("make", [Sum, Halved])
def test_steps_of_user_metanets_are_their_updates(make, small_network, monkeypatch):
    """Also of an FF with other updates than those of its MLP."""
    monkeypatch.setattr(metanet_rule, "SMALL_NETWORK", small_network)
    torch.manual_seed(0)
    metanet = make().double()
    params, grads = torch.randn(2, 1, 4, 3, dtype=torch.float64).unbind()
    rule = MetanetRule(metanet, build_graph([params[0]]))
    state = rule.init([params[0]])
    given = [grads[0]], state, [params[0]], Hyper([1.0], [0.0])
    ((change,),) = rule.update(*given, in_place=True)
    momenta = [state[0][key] for key in MOMENTA]
    features = preprocess([params[0], grads[0], *momenta])
    expected = metanet.updates(features.flatten(0, 1), None).view(4, 3)
    torch.testing.assert_close(change.delta, expected, rtol=1e-12, atol=0)


class WrongShape(Metanet):
    """Updates of a wrong shape."""

    def __init__(self):
        super().__init__(FeedForwardConfig())
        self.layer = torch.nn.Linear(14, 1)

    def updates(self, features, context):
        return self.layer(features)


@pytest.mark.parametrize("is_differentiated", [False, True])
def test_updates_of_a_wrong_shape_are_refused(is_differentiated):
    params = [torch.zeros(2, 3)]
    rule = MetanetRule(WrongShape(), build_graph(params))
    state = rule.init(params)
    message = r"^WrongShape.updates: expected shape \(6,\), one update for .*\(6, 1\)$"
    refused = pytest.raises(ValueError, match=message)
    with refused, torch.set_grad_enabled(is_differentiated):
        in_place = not is_differentiated
        list(rule.update(params, state, params, Hyper([1.0], [0.0]), in_place))


def test_a_metanet_without_updates_is_refused():
    class Without(Metanet):
        pass

    with pytest.raises(TypeError, match=r"Without .*'?updates"):
        Without(FeedForwardConfig())


def test_a_config_without_nominal_step_is_refused():
    class WithoutStep(WrongShape):
        def __init__(self):
            Metanet.__init__(self, {"width": 3})

    message = r"^WithoutStep: expected a config with nominal_step.*got \{'width': 3\}"
    with pytest.raises(ValueError, match=message):
        WithoutStep()
