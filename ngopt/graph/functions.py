"""Functions that networks apply to single neurons, as torch names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Symmetry = Literal["phase", "sign", "scale"]

ACTIVATIONS = """
relu relu6 hardtanh gelu silu sigmoid tanh leaky_relu elu selu celu mish softplus hardswish
hardsigmoid softmax log_softmax sin cos exp softsign glu logsigmoid rrelu prelu
""".split()

# f(c x) = c f(x) for all c, for c = -1, for all c > 0; what joins positions of a neuron among them.
LINEAR = """
mul div neg mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
""".split()
ODD = "sin tanh hardshrink softshrink".split()
HOMOGENEOUS = """
relu leaky_relu abs amax amin max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d
""".split()
# At random, and linear for given random numbers.
RANDOM = "dropout feature_dropout".split()


def allowed(functions: Sequence[str]) -> Symmetry | None:
    """How neurons may be changed that go through all these functions and are undone by the next
    weights.

    "phase" and "sign", "sign" alone, or "scale" (see `activation_symmetry`);
    None where nothing is known.
    """
    curved = [name for name in functions if name not in (*LINEAR, *RANDOM)]
    if curved == ["sin"]:
        return "phase"
    if curved and all(name in ODD for name in curved):
        return "sign"
    if curved and all(name in HOMOGENEOUS for name in curved):
        return "scale"
    return None
