"""Estimators of the meta-gradient, the derivative of an unroll's meta-loss by the
metanet's weights.

The metanet of a learned optimizer is trained; a base rule stays as it is. Estimators
work in truncations of an inner run: `start` begins it and gives its state, a
pytree of tensors; `estimate` unrolls it further, or a stack of several.

Biases, and costs of T steps of an optimizee:

TBPTT: ignores losses after T, and the effect of an update on later gradients.
    T + 1 gradients, T to 2 T updates and T backward passes of the metanet; memory of
    few.
SecondOrderTBPTT: ignores losses after T.
    T + 1 gradients and their derivatives; memory of T.
PES: unbiased for a loss that sigma smooths; the variance grows with the number of
    truncations. 2 T gradients and updates.
PES, persistent = False: ignores losses after T, so unbiased if T is the whole training
    (full ES). 2 T gradients and updates.
"""

from meta_train.training.estimators.estimate import Estimate
from meta_train.training.estimators.pes import PES
from meta_train.training.estimators.tbptt import TBPTT, SecondOrderTBPTT

Estimator = TBPTT | PES

__all__ = ["PES", "TBPTT", "Estimate", "Estimator", "SecondOrderTBPTT"]
