import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ngopt.metanets.layers.aggregation import TO_SOURCES, TO_TARGETS
from ngopt.metanets.layers.pna import FiLMStatistics

GROUPS, TARGETS, SOURCES, TILES, BATCH, WIDTH = 2, 3, 4, 2, 2, 2


def inputs(seed=0, batch=BATCH, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    full = GROUPS, TARGETS, SOURCES, TILES
    ends = (GROUPS, TARGETS, 1, 1), (GROUPS, 1, SOURCES, 1)
    shapes = [(*shape, batch, width) for shape in (full, full, *ends)]
    options = {"dtype": torch.float64, "generator": generator, "requires_grad": True}
    return [torch.randn(shape, **options) for shape in shapes]


def by_steps(scale, shift, target, source, axes):
    """The same, with autograd through every operation."""
    messages = scale * (target + source) + shift
    return (
        messages.mean(axes, keepdim=True),
        messages.var(axes, correction=0, keepdim=True),
        messages.amin(axes, keepdim=True),
        messages.amax(axes, keepdim=True),
    )


def weighted(found):
    """One number that depends on all statistics."""
    return sum(
        (k + 1) * (x * torch.arange(x.numel()).view_as(x).cos()).sum()
        for k, x in enumerate(found)
    )


@pytest.mark.parametrize("axes", [TO_TARGETS, TO_SOURCES])
def test_statistics_and_their_gradients_are_those_of_autograd(axes):
    ours, theirs = inputs(), inputs()
    found = FiLMStatistics.apply(*ours, axes)
    expected = by_steps(*theirs, axes)
    torch.testing.assert_close(found, expected)
    weighted(found).backward()
    weighted(expected).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("axes", [TO_TARGETS, TO_SOURCES])
def test_first_and_second_derivatives_against_differences(axes):
    def function(*tensors):
        return FiLMStatistics.apply(*tensors, axes)

    assert gradcheck(function, inputs())
    # differences of every number: of fewer, whose axes are independent of one another
    assert gradgradcheck(function, inputs(width=1))


def test_messages_that_are_equal_share_the_gradient_of_an_extremum():
    shift = torch.zeros(1, 1, 4, 1, 1, dtype=torch.float64)
    shift[0, 0, :, 0, 0] = torch.tensor([3.0, 3.0, 1.0, 2.0])
    shift.requires_grad_()
    nothing = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    _, _, low, high = FiLMStatistics.apply(
        torch.zeros_like(shift), shift, nothing, nothing, TO_TARGETS
    )
    (gradient,) = torch.autograd.grad(2 * high.sum() + 5 * low.sum(), shift)
    assert gradient.flatten().tolist() == [1.0, 1.0, 5.0, 0.0]


def test_vmap_over_a_stack():
    stack = [torch.stack(pair) for pair in zip(inputs(1), inputs(2), strict=True)]

    def gradient(*tensors):
        return torch.func.grad(
            lambda *x: weighted(FiLMStatistics.apply(*x, TO_TARGETS))
        )(*tensors)

    mapped = torch.vmap(gradient)(*(x.detach() for x in stack))
    for k, seed in enumerate((1, 2)):
        own = gradient(*(x.detach() for x in inputs(seed)))
        torch.testing.assert_close(mapped[k], own)
