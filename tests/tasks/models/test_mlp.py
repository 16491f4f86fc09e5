import torch

from tasks.models.mlp import EPSILON, MOMENTUM, RunningNorm


def test_running_averages_of_the_first_batches_are_plain_means():
    torch.manual_seed(0)
    norm = RunningNorm(3).double()
    batches = torch.randn(4, 6, 3, dtype=torch.float64)
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.mean, batches.mean((0, 1)))


def test_the_first_batch_has_mean_0_and_variance_1():
    batch = torch.tensor([[1.0, 5.0], [3.0, 9.0]], dtype=torch.float64)
    normed = RunningNorm(2).double()(batch)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(normed, expected, rtol=0, atol=EPSILON)


def test_later_batches_have_the_weight_of_the_momentum():
    norm = RunningNorm(1).double()
    norm.batches.fill_(1000)
    norm(torch.full((2, 1), 10.0, dtype=torch.float64))
    mean = 10 * MOMENTUM
    torch.testing.assert_close(norm.mean.item(), mean)
    expected = 1 - MOMENTUM + MOMENTUM * (10 - mean) ** 2
    torch.testing.assert_close(norm.variance.item(), expected)


def test_one_network_may_be_a_batch_and_in_evaluation_networks_are_independent():
    torch.manual_seed(0)
    norm = RunningNorm(3)
    batch = torch.randn(5, 3)
    norm(batch)
    assert norm(batch[:1]).isfinite().all()
    norm.eval()
    before = norm.mean.clone()
    torch.testing.assert_close(norm(batch[2:3]), norm(batch)[2:3])
    assert torch.equal(norm.mean, before)
