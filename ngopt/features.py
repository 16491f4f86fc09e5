"""The per-parameter features of the paper: weight, gradient and momenta, through log and sign."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor

# Metz et al. 2019; Kofinas et al. 2024, section 4.3.
DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
# Cut-off of the preprocessing: magnitudes below exp(-p) are treated linearly (Andrychowicz et al. 2016, App. A).
LOG_CUTOFF = 10.0
NUM_FEATURES = 2 * (2 + len(DECAYS))


def update_momenta(
    momenta: Sequence[Tensor],
    gradient: Tensor,
    decays: Sequence[float] = DECAYS,
    in_place: bool = False,
) -> list[Tensor]:
    """Exponential moving averages of the gradient, without bias correction: m <- decay * m + (1 - decay) * g.

    in_place: writes the new ones where the old ones are.
    """
    gradient = gradient.to(momenta[0].dtype)
    lerp = Tensor.lerp_ if in_place else Tensor.lerp
    return [lerp(m, gradient, 1 - decay) for m, decay in zip(momenta, decays, strict=True)]


def preprocess(columns: Sequence[Tensor], cutoff: float = LOG_CUTOFF) -> Tensor:
    """Log-magnitude and sign of every value (Andrychowicz et al. 2016, App. A, Eq. 4).

    columns: k tensors (*shape). Returns (*shape, 2 k): first the k log-magnitudes, then the k signs,
    each feature together in memory. A value with |x| >= exp(-p) gives (log|x| / p, sign x), a smaller
    one (-1, exp(p) x). Derivatives are finite everywhere, also at zero.
    """
    x, least = torch.stack(list(columns)), exp(-cutoff)
    # in place where a derivative needs nothing that is lost
    log = x.abs().clamp(min=least).log().div_(cutoff)
    sign = x.clamp(-least, least).div_(least)
    return torch.cat([log, sign]).movedim(0, -1)
