"""What holds of every problem, and of the lists."""

from itertools import chain, combinations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from harness.image_datasets import DatasetUnavailable
from meta_train.problems import (
    DEVELOPMENT,
    LISTS,
    META_TEST,
    META_VALIDATION,
    PAPER,
    PROBLEMS,
    SITUATIONS,
    load_problem,
)


@pytest.fixture(params=PROBLEMS)
def problem(request):
    problem = load_problem(request.param)
    try:
        problem.data()
    except DatasetUnavailable as error:
        pytest.skip(f"data cannot be had: {error}")
    return problem


def flat(batch):
    return torch.cat([leaf.double().flatten() for leaf in tree_leaves(batch)])


def initial_weights(problem, seed):
    return nn.utils.parameters_to_vector(problem.init(seed).parameters())


def test_everything_follows_from_the_seed(problem):
    torch.manual_seed(1)
    weights = initial_weights(problem, 3)
    batch = flat(problem.batch(3, 5))
    torch.manual_seed(2)
    assert torch.equal(initial_weights(problem, 3), weights)
    assert torch.equal(flat(problem.batch(3, 5)), batch)
    assert not torch.equal(initial_weights(problem, 4), weights)
    if problem.batch_size is not None:
        assert not torch.equal(flat(problem.batch(4, 5)), batch)
        assert not torch.equal(flat(problem.batch(3, 6)), batch)


def test_every_parameter_has_a_finite_gradient(problem):
    model = problem.init(0)
    loss = problem.loss(model, problem.batch(0, 0))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_evaluation_repeats_and_changes_nothing(problem):
    model = problem.init(0).eval()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    for split in ("validation", "test"):
        first = problem.evaluate(model, split, 40)
        torch.rand(1)
        assert problem.evaluate(model, split, 40) == first
        assert first.loss > 0
        assert first.accuracy is None or 0 <= first.accuracy <= 1
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


def test_a_problem_has_the_name_it_is_found_by():
    assert {name: load_problem(name).name for name in PROBLEMS} == {
        name: name for name in PROBLEMS
    }


def test_lists_have_no_problem_in_common():
    for first, second in combinations((DEVELOPMENT, META_VALIDATION, META_TEST), 2):
        assert not set(first) & set(second)
    assert set(chain(*LISTS.values())) == {*PROBLEMS, *SITUATIONS}


def test_the_papers_cifar_problem_and_its_data_choose_nothing():
    held_out = load_problem("c10-32")
    assert PAPER == ("fm-16", "c10-32")
    for name in (*DEVELOPMENT, *META_VALIDATION):
        problem = load_problem(name)
        same_network = str(problem.build()) == str(held_out.build())
        assert name != "c10-32"
        assert not same_network


def test_a_third_of_what_may_be_chosen_on_is_kept_for_validation():
    share = len(META_VALIDATION) / (len(DEVELOPMENT) + len(META_VALIDATION))
    assert len(DEVELOPMENT) >= 14
    assert 0.3 < share < 0.36


def test_horizons_and_batch_sizes_span_what_they_should():
    problems = [load_problem(name) for name in DEVELOPMENT]
    steps = [problem.steps for problem in problems]
    sizes = [problem.batch_size for problem in problems if problem.batch_size]
    assert (min(steps), max(steps)) == (200, 3000)
    assert (min(sizes), max(sizes)) == (8, 512)


def test_an_unknown_problem_is_told_what_is_known():
    with pytest.raises(
        ValueError, match="problem 'fm-17': expected .* Nearest: fm-16, fm-8"
    ):
        load_problem("fm-17")
    missing = "problem 'nowhere:factory': cannot import 'nowhere': No module"
    with pytest.raises(ValueError, match=missing):
        load_problem("nowhere:factory")
