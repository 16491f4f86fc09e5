"""Estimators of the meta-gradient: how the meta-loss of an unroll changes with the
metanet's weights.

The metanet of a learned optimizer is what is trained; a base rule stays as it is. All
estimators work in truncations of an inner training, behind one interface: `start`
begins an inner training, `estimate` unrolls it further, or a stack of several, and
returns what was learned from each.

Their biases, and what T steps of an optimizee cost:

TBPTT               blind to what comes after T, and to what an update does to later gradients.
                    T + 1 gradients, T to 2 T updates and T backward passes of the metanet;
                    memory of few.
SecondOrderTBPTT    blind to what comes after T. T + 1 gradients and their derivatives; memory of T.
PES                 none, of a loss that sigma smooths; variance grows with the number of
                    truncations. 2 T gradients and updates.
PES, persistent     blind to what comes after T; none where T is the whole training (full ES). The
  = False           same.
Imitation           another goal: what a strong rule does, not the loss. T gradients, T updates of
                    both rules, T backward passes.
"""

from meta_train.training.estimators.estimate import Estimate, Estimator
from meta_train.training.estimators.imitation import Imitation
from meta_train.training.estimators.pes import PES
from meta_train.training.estimators.tbptt import TBPTT, SecondOrderTBPTT

__all__ = ["PES", "TBPTT", "Estimate", "Estimator", "Imitation", "SecondOrderTBPTT"]
