"""The Triton kernel of the update MLP in Triton's interpreter, which needs no GPU.

The file runs itself: see `tests.ngopt.interpreter`.
"""

import torch

from ngopt.metanets.features import features_of
from ngopt.metanets.update_mlp import UpdateMLP
from tests.ngopt import interpreter

COUNT = 600  # elements: two whole programs and a part
CASES = [
    (torch.float32, 32, 0),
    (torch.bfloat16, 32, 8),
    (torch.float16, 16, 3),
    (torch.float32, 64, 16),
]


def test_kernel_equals_the_layers():
    assert interpreter.run(__file__).count("equal") == len(CASES)


def check(dtype, hidden, d_context):
    """Weights of a dtype; a column in bfloat16, and values that are not finite."""
    from ngopt.metanets.mlp_kernel import launch

    torch.manual_seed(0)
    mlp = UpdateMLP(14, (hidden, hidden), 0.02, 0.5, d_context).to(dtype)
    weights = [p.detach() for p in mlp.parameters()]
    sizes = 10 ** (4 * torch.randn(7, COUNT) - 4)
    columns = [*(sizes * torch.randn(7, COUNT))]
    columns[0] = columns[0].bfloat16()
    columns[2][5] = 0
    columns[1][3], columns[4][-1] = torch.nan, torch.inf
    context = torch.randn(COUNT, d_context).bfloat16() if d_context else None
    found = launch(columns, context, weights, (0.02, 0.5))

    features = features_of(columns, torch.empty(0))
    own = None if context is None else context.float()
    with torch.no_grad():
        expected = mlp.float()(features, own)
    is_finite = expected.isfinite()
    assert is_finite.sum() == COUNT - 2
    assert torch.equal(found.isfinite(), is_finite)
    close = {"rtol": 1e-4, "atol": 1e-6 * expected[is_finite].abs().max().item()}
    torch.testing.assert_close(found[is_finite], expected[is_finite], **close)
    print("equal")


if __name__ == "__main__":
    for case in CASES:
        check(*case)
