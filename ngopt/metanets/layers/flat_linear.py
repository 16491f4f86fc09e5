"""A linear map of many axes; on accelerators one kernel that adds the bias."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear


def flat_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(*, d_in) -> (*, d_out). torch adds the bias in the product only for one or two
    axes before the last; elsewhere that is another pass over the result."""
    if x.is_cpu:
        return linear(x, weight, bias)
    rows = linear(x.flatten(0, -2), weight, bias)
    return rows.unflatten(0, x.shape[:-1])
