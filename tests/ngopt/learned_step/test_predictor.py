"""The learned factor of the step size."""

import copy
import math

import pytest
import torch
from torch import nn

from benchmarks.launches import Counts, quiet
from ngopt import NGOptimizer
from ngopt.learned_step.features import FEATURES, HORIZON, LOG_STEPS
from ngopt.learned_step.predictor import StepPredictor
from ngopt.pretrained import load_pretrained, save_pretrained
from tests.networks import cnn, mlp
from tests.ngopt.training import step_with_noise
from tests.predictors import learned, random_predictor

COUNT = len(FEATURES)


@pytest.fixture
def predictor():
    return random_predictor()


def train(predictor, steps=12, model=None, **settings):
    """Parameters and their optimizer after some steps."""
    torch.manual_seed(0)
    model = model or cnn().double()
    params = list(model.parameters())
    settings = {"total_steps": 30, **settings}
    opt = NGOptimizer(params, rule=learned(predictor), **settings)
    step_with_noise(opt, params, range(steps))
    return params, opt


def factors_of(params, opt):
    return [float(opt.state[p]["predicted"]) for p in params]


def factor_of(params, opt):
    first, *others = factors_of(params, opt)
    assert others == pytest.approx([first] * len(others), rel=1e-12)
    return first


def test_it_multiplies_the_scale(predictor):
    params, opt = train(predictor)
    factor = factor_of(params, opt)
    assert abs(factor - 1) > 0.05
    expected, _ = train(None, scale=factor)
    torch.testing.assert_close(params, expected, rtol=1e-9, atol=1e-9)


def test_the_slope_goes_over_the_layers_in_the_order_of_the_parameters():
    middle = train(random_predictor(), model=mlp(6, 16, 16, 16, 3).double())
    around = train(random_predictor(1.0), model=mlp(6, 16, 16, 16, 3).double())
    found = torch.tensor(factors_of(*around)).double()
    # the slope has the same networks as the factor, therefore the same size
    slope = torch.tensor(factor_of(*middle)).log2()
    positions = torch.tensor([-1, -1, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1, 1])
    torch.testing.assert_close(found.log2(), slope * (1 + positions.double()))
    assert abs(slope) > 0.05


def test_factors_are_between_half_and_twice():
    for sign in (-1, 1):
        large = random_predictor()._replace(
            output_bias=torch.full((2, 1, 2), 9.0 * sign)
        )
        first, *_, last = factors_of(*train(large, model=mlp(6, 16, 16, 3).double()))
        assert first == pytest.approx(1, abs=1e-3)
        assert last == 2.0**sign


def test_networks_of_two_layers_have_no_slope():
    factor_of(*train(random_predictor(1.0), model=mlp(6, 16, 3)))


def test_zeros_are_the_base_rule_to_the_bit(predictor):
    zeros = predictor._replace(output=torch.zeros(2, 4, 2))
    # of 1 %, which is nothing
    tiny = zeros._replace(output_bias=torch.full((2, 1, 2), 0.014))
    expected, _ = train(None)
    for own in (zeros, tiny):
        params, opt = train(own)
        assert set(factors_of(params, opt)) == {1.0}
        assert all(map(torch.equal, params, expected))


def test_it_is_one_where_nothing_is_known(predictor):
    """Far from all training runs, without a horizon, without matrices."""
    far = predictor._replace(points=torch.full((1, COUNT), 50.0))
    assert set(factors_of(*train(far))) == {1.0}
    short = predictor._replace(longest=torch.tensor(math.log(15 / HORIZON)))
    assert set(factors_of(*train(short))) == {1.0}
    assert factor_of(*train(predictor, total_steps=None)) == 1
    scale = nn.ParameterList([torch.ones(5), torch.zeros(3)])
    assert factor_of(*train(predictor, model=scale)) == 1


def test_predictions_fall_to_zero_with_the_distance_from_training_runs(predictor):
    near = torch.full((1, COUNT), 0.5)
    length = float(near.norm())
    expected = predictor.predict(near)
    assert expected.abs().max() > 0.1
    for reach, share in ((length, 1.0), (0.75 * length, 2 / 3), (0.4 * length, 0.0)):
        found = predictor._replace(reach=torch.tensor(reach)).predict(near)
        torch.testing.assert_close(found, share * expected)


def test_predictions_fall_to_zero_beyond_the_longest_training_runs(predictor):
    longest = predictor._replace(longest=torch.tensor(0.0))
    x = torch.zeros(3, COUNT)
    x[:, FEATURES.index(LOG_STEPS)] = torch.tensor([0.0, 0.5, 1.0]) * math.log(2)
    torch.testing.assert_close(longest.trust(x), torch.tensor([1.0, 0.5, 0.0]))


def test_networks_that_disagree_predict_nothing(predictor):
    bias = torch.tensor([0.5, -0.4]).view(2, 1, 1).expand(2, 1, 2)
    disagreeing = predictor._replace(
        output=torch.zeros(2, 4, 2), output_bias=bias, caution=torch.tensor([0.5, 0.0])
    )
    factor, slope = disagreeing.predict(torch.zeros(1, COUNT))[0]
    assert factor == 0 and slope > 0


def test_with_a_scheduler_it_is_one(predictor):
    params, opt = train(predictor, 0)
    torch.optim.lr_scheduler.StepLR(opt, 5)
    step_with_noise(opt, params, range(3))
    assert factor_of(params, opt) == 1


def test_zero_weights_and_one_matrix_are_finite(predictor):
    linear = nn.Linear(3, 2)
    nn.init.zeros_(linear.weight)
    assert 1 / 2 <= factor_of(*train(predictor, model=linear)) <= 2


def test_a_weight_that_is_not_finite_spoils_no_other(predictor):
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    params, opt = train(predictor, model=model)
    assert factor_of(params, opt) == 1
    assert all(p.isfinite().all() for p in model[1].parameters())


def train_once(predictor, change):
    """The factor of a model whose first gradients are changed in place."""
    torch.manual_seed(0)
    model = mlp(6, 16, 16, 3)
    opt = NGOptimizer(model.named_parameters(), rule=learned(predictor), total_steps=30)
    model(torch.randn(32, 6)).square().mean().backward()
    change([p.grad for p in model.parameters()])
    opt.step()
    return factor_of(list(model.parameters()), opt)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
def test_the_scale_of_the_loss_makes_no_difference(predictor, scale):
    expected = train_once(predictor, lambda grads: None)
    found = train_once(predictor, lambda grads: [g.mul_(scale) for g in grads])
    assert abs(found - 1) > 0.05
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_first_gradients_without_a_size_do_not_count(predictor, value):
    one = train_once(predictor, lambda grads: grads[0].fill_(value))
    assert 1 / 2 <= one <= 2
    assert abs(one - 1) > 0.05
    # nothing is known of the gradients of a first step that is not made
    assert train_once(predictor, lambda grads: [g.fill_(value) for g in grads]) == 1


def test_the_default_device_makes_no_difference(predictor):
    def change(grads):
        torch.set_default_device("meta")

    expected = train_once(predictor, lambda grads: None)
    try:
        assert train_once(predictor, change) == expected
    finally:
        torch.set_default_device(None)


def test_it_is_printed_after_the_first_step(predictor):
    params, opt = train(predictor, 0)
    assert "step size: " not in repr(opt)
    step_with_noise(opt, params, [0])
    factor = factor_of(params, opt)
    assert f"step size: {factor:.2f} times that of the base rule" in repr(opt)
    assert "from 5 matrices without norms, 30 steps, initial weights" in repr(opt)


def test_slopes_are_printed():
    params, opt = train(random_predictor(1.0), 1, mlp(6, 16, 16, 3))
    first, *_, last = factors_of(params, opt)
    text = f"step size: {first:.2f} (first layer) to {last:.2f} (last layer) times that"
    assert text in repr(opt)


def deep_factors(grouped=list, is_traced=False):
    """Names and factors of an MLP's parameters, and what is printed.

    grouped: makes param groups of named parameters.
    """
    torch.manual_seed(0)
    model = mlp(6, *[16] * 6, 3)
    named = list(model.named_parameters())
    settings = {"rule": learned(random_predictor(1.0)), "total_steps": 30}
    opt = NGOptimizer(grouped(named), model=model if is_traced else None, **settings)
    model(torch.randn(32, 6)).square().mean().backward()
    opt.step()
    factors = {name: float(opt.state[p]["predicted"]) for name, p in named}
    return factors, repr(opt).splitlines()[-1]


def by_decay(named):
    matrices = [(name, p) for name, p in named if p.dim() > 1]
    vectors = [(name, p) for name, p in named if p.dim() < 2]
    return [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]


def head_first(named):
    return [{"params": named[-2:]}, {"params": named[:-2]}]


@pytest.mark.parametrize("grouped", [by_decay, head_first])
@pytest.mark.parametrize("is_traced", [False, True])
def test_groups_make_no_difference(grouped, is_traced):
    expected, line = deep_factors(is_traced=is_traced)
    assert max(expected.values()) > 1.1 * min(expected.values())
    found, same_line = deep_factors(grouped, is_traced)
    assert found == pytest.approx(expected, rel=1e-5)
    assert line == same_line


def test_order_of_parameters_makes_no_difference_to_a_traced_network():
    expected, _ = deep_factors(is_traced=True)
    found, _ = deep_factors(lambda named: named[::-1], is_traced=True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_vectors_of_unknown_layers_have_the_factor_of_the_middle():
    def without_names(named):
        return [{**g, "params": [p for _, p in g["params"]]} for g in by_decay(named)]

    factors, _ = deep_factors(without_names)
    first, *_, last = [x for name, x in factors.items() if name.endswith("weight")]
    for name, factor in factors.items():
        if name.endswith("bias"):
            assert factor == pytest.approx((first * last) ** 0.5)


def test_factors_without_an_order_are_printed_as_a_range():
    params, opt = train(random_predictor(1.0), 1, mlp(6, 16, 16, 16, 3))
    for p in params[2:4]:
        opt.state[p]["predicted"].fill_(4.0)
    assert "step size: " in repr(opt)
    assert " to 4.00 times that of the base rule" in repr(opt)


def test_it_is_said_why_the_base_rule_is_used(predictor):
    params, opt = train(predictor, 1)
    for p in params:
        opt.state[p]["predicted"].fill_(1.0)
    assert "step size: that of the base rule (5 matrices" in repr(opt)
    _, opt = train(predictor, 1, total_steps=None)
    assert "step size: that of the base rule, as total_steps is not given" in repr(opt)
    _, opt = train(None, 1)
    assert "step size: " not in repr(opt)


def stepped_on_meta(weights):
    """An optimizer of a network on the meta device, after its first step."""
    with torch.device("meta"):
        params = list(cnn().parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    opt = NGOptimizer(params, rule=weights, total_steps=1000)
    opt.step()
    return opt


def test_one_on_the_meta_device_is_not_printed(predictor):
    assert "step size: " not in repr(stepped_on_meta(learned(predictor)))


def test_order_of_neurons_makes_no_difference(predictor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    expected = factor_of(*train(predictor, 1, copy.deepcopy(model)))
    with torch.no_grad():
        order = torch.randperm(9)
        model[0].weight.copy_(model[0].weight[order])
        model[2].weight.copy_(model[2].weight[:, order])
    assert factor_of(*train(predictor, 1, model)) == pytest.approx(expected, rel=1e-12)


def test_a_resumed_run_keeps_it(predictor):
    params, opt = train(predictor, 4)
    other = NGOptimizer(params, rule=learned(predictor), total_steps=3000)
    other.load_state_dict(opt.state_dict())
    assert factor_of(params, other) == factor_of(params, opt)


def test_it_is_read_from_a_weights_file(predictor, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_pretrained(learned(predictor), path)
    found = load_pretrained(path).multiplier.predictor
    assert all(map(torch.equal, found, predictor))


def test_other_tensors_are_refused(predictor):
    tensors = predictor._asdict()
    del tensors["reach"]
    with pytest.raises(ValueError, match="step predictor: expected mean"):
        StepPredictor.of(tensors)


def test_on_a_device_nothing_is_read_and_later_steps_cost_two_products():
    counts = {}
    for weights in ("default", "learned-step"):
        opt = stepped_on_meta(weights)
        with Counts() as counts[weights], quiet():
            opt.step()
    assert counts["learned-step"].copies == counts["default"].copies
    assert counts["learned-step"].ops - counts["default"].ops == {"mul": 2}
