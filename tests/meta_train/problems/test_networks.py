import torch

from meta_train.problems.networks.dense import MixtureOfExperts, Siren, SirenSlopes
from meta_train.problems.networks.sequential import (
    CausalAttention,
    Gpt,
    LinearAttention,
)


def test_slopes_equal_those_of_autograd():
    torch.manual_seed(0)
    siren = Siren((2, 8, 8, 1)).double()
    slopes = SirenSlopes((2, 8, 8, 1)).double()
    slopes.load_state_dict(siren.state_dict(), strict=False)
    points = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(siren(points).sum(), points)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(slopes(points), expected)
    finally:
        torch.set_default_dtype(default)


def test_linear_attention_is_attention_with_its_kernel():
    torch.manual_seed(0)
    layer = LinearAttention(6, 2)
    x = torch.randn(1, 4, 6)
    mixed = torch.zeros(4, 6)
    for head in (slice(0, 3), slice(3, 6)):
        parts = layer.query, layer.key, layer.value
        q, k, v = (part(x)[0, :, head] for part in parts)
        weights = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).T
        mixed[:, head] = weights / weights.sum(1, keepdim=True) @ v
    torch.testing.assert_close(layer(x)[0], layer.out(mixed))


def test_logits_depend_on_no_later_character():
    torch.manual_seed(0)
    model = Gpt(9, 8, 12, 2, 2)
    codes = torch.randint(9, (1, 8))
    changed = codes.clone()
    changed[0, 5] = (codes[0, 5] + 1) % 9
    before, after = model(codes), model(changed)
    assert torch.equal(before[..., :5], after[..., :5])
    assert not torch.allclose(before[..., 5:], after[..., 5:])


def test_heads_of_attention_are_independent_before_the_last_layer():
    torch.manual_seed(0)
    layer = CausalAttention(6, 2)
    x = torch.randn(1, 4, 6)
    layer.out = torch.nn.Identity()
    before = layer(x)
    with torch.no_grad():
        layer.qkv.weight[[0, 1, 2]] += 1  # queries of the first head
    after = layer(x)
    assert torch.equal(before[..., 3:], after[..., 3:])
    assert not torch.allclose(before[..., :3], after[..., :3])


def test_two_experts_have_a_gradient_for_an_input():
    torch.manual_seed(0)
    model = MixtureOfExperts(4, 5, 6, 3)
    model(torch.randn(1, 1, 2, 2)).sum().backward()
    norms = [[p.grad.abs().sum() for p in e.parameters()] for e in model.experts]
    assert sum(any(norm > 0 for norm in of_expert) for of_expert in norms) == 2
