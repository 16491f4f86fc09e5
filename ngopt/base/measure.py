"""Sizes of gradients: what makes the rule free of the loss's scale, and lets it survive bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.functional import Record

# Decay of the running size of a gradient.
SIZE_DECAY = 0.95
# Below this a running size is none: mean squares of float32 end there.
TINY = 1e-30


class Measured(NamedTuple):
    """Of one gradient, () each, on the gradient's device.

    active: 1, or 0 where the gradient is not finite, and the step is left out.
    multiplier: brings the gradient to its scale, and cuts it where it is out of all proportion.
    scale: size of the first gradient that was not zero, a power of two; 0 before.
    size: running mean square of the gradient in that scale, without correction of its beginning.
    mean_square: the same with it.
    """

    active: Tensor
    multiplier: Tensor
    scale: Tensor
    size: Tensor
    mean_square: Tensor


def measure(grads: Sequence[Tensor], state: Sequence[Record], clip: float) -> list[Measured]:
    """Measures all gradients together, without a word to the host.

    state: records with `step`, `scale` and `size`. clip: a gradient may be this many times as large
        as its running size.
    """
    device = grads[0].device
    # squares of float32 end at 1e38; float64 holds those of all float32
    exact = torch.float32 if device.type == "mps" else torch.float64
    norms = [norm.to(device) for norm in torch._foreach_norm(list(grads), 2, exact)]
    numel = torch.tensor([max(g.numel(), 1) for g in grads], dtype=exact).to(device)
    rms = torch.stack(norms) / numel.sqrt()
    step, scale, size = (_column(state, key, device, exact) for key in ("step", "scale", "size"))

    finite = rms.isfinite()
    begins = finite & (rms > 0) & (scale == 0)
    first = rms.clamp(1e-37, 1e38).log2().round().exp2()  # a power of two that float32 has
    scale = torch.where(begins, first, scale)
    inverse = torch.where(scale > 0, 1 / scale, 0)
    relative = torch.where(finite, rms * inverse, 0)

    mean = size / (1 - SIZE_DECAY**step).clamp(min=TINY)
    limit = torch.where(mean > TINY, clip * mean.sqrt(), torch.inf)
    cut = torch.where(relative > limit, limit / relative, 1)
    active = finite.to(exact)
    size = size.lerp((relative * cut) ** 2, (1 - SIZE_DECAY) * active)
    mean = size / (1 - SIZE_DECAY ** (step + 1))
    columns = [c.float().unbind() for c in (active, inverse * cut, scale, size, mean)]
    return [Measured(*row) for row in zip(*columns, strict=True)]


def _column(state: Sequence[Record], key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.stack([record[key] for record in state]).to(device, dtype)
