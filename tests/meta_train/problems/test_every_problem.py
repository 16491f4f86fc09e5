"""Properties of every problem with a name."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from harness.image_datasets import DatasetUnavailable
from meta_train.problems import LISTS, PROBLEMS, load_problem
from meta_train.problems.situations import (
    DEVELOPING,
    SITUATIONS,
    TESTING,
    VALIDATING,
    finetuning,
)
from tests.meta_train.small import available
from tests.selection import quick_first

ALIKE = {
    *(name for name in LISTS["ladders"] if name.count("-") > 2),
    *(name for name in LISTS["velo"] if "128x128x128" in name),
}
"""Problems that differ from others in numbers alone."""


@pytest.fixture(scope="module", autouse=True)
def little_pretraining():
    """Pretrained networks need not be good here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "PRETRAINING", 0.02)
        finetuning.weights.cache_clear()
        yield
    finetuning.weights.cache_clear()


@pytest.fixture(params=quick_first(PROBLEMS, PROBLEMS.keys() - ALIKE))
def problem(request):
    return available(request.param)


def flat(batch):
    leaves = map(torch.as_tensor, tree_leaves(batch))
    return torch.cat([leaf.double().flatten() for leaf in leaves])


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().float()


def test_the_seed_determines_weights_and_batches(problem):
    torch.manual_seed(1)
    initial, batch = weights(problem.init(3)), flat(problem.batch(3, 5))
    torch.manual_seed(2)
    assert torch.equal(weights(problem.init(3)), initial)
    assert torch.equal(flat(problem.batch(3, 5)), batch)
    if problem.name not in SITUATIONS:  # they may be pretrained, or zero at first
        assert not torch.equal(weights(problem.init(4)), initial)
    if problem.batch_size is not None:
        for key in ((4, 5), (3, 6)):
            assert not torch.equal(flat(problem.batch(*key)), batch)


def test_steps_change_all_that_is_trained_and_evaluation_nothing(problem):
    model = problem.init(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(2):  # behind what is zero the gradients come at the second
        optimizer.zero_grad()
        loss = problem.loss(model, problem.batch(0, step))
        loss.backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert p.grad is not None and p.grad.isfinite().all(), name
        optimizer.step()
        assert loss.isfinite()
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert torch.equal(p, before[name]) != p.requires_grad, name
    after = {k: v.clone() for k, v in model.eval().state_dict().items()}
    losses = set()
    for split in ("validation", "test"):
        metrics = problem.evaluate(model, split, 40)
        losses.add(metrics.loss)
        torch.rand(1)
        assert problem.evaluate(model, split, 40) == metrics
        assert metrics.loss > 0
        assert metrics.accuracy is None or 0 <= metrics.accuracy <= 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]), name
    # bandits without states have the same regret on both splits, and a picture is one
    one_split = "bandits-8", "bandits-10", "siren-slopes", "siren-rgb", *LISTS["exact"]
    assert len(losses) == 2 or problem.name in one_split


def test_thirds_share_neither_initial_weights_nor_batches():
    owners = {}
    for third, names in enumerate((DEVELOPING, VALIDATING, TESTING)):
        for name in names:
            try:
                problem = load_problem(name)
                start, batch = weights(problem.init(0)), flat(problem.batch(0, 0))
            except DatasetUnavailable:
                continue
            for key in (start, batch):
                if not key.any():
                    continue
                key = key.numpy().tobytes()
                other, owner = owners.setdefault(key, (third, name))
                assert other == third, (owner, name)
