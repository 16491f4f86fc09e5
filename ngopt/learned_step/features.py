"""What is known of a network at its first step, as a few numbers.

They come from the horizon, from roles and shapes of parameters, and from the initial
weights and first gradients. They depend neither on the order of neurons and parameters
nor on the scale of the loss.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.devices import precise_dtype
from ngopt.roles.from_graph import ParameterRole
from ngopt.soap.config import Measured, Network

HORIZON = 500  # steps
LOG_ZERO = -9.0  # log of a matrix' size below which it is zero
MIN_SIZE = 1e-4  # size of a matrix
MIN_SHARE = math.exp(-10)  # of vectors in the squared gradient
TINY = 1e-30
SHALLOW = 6  # matrices of a network that is not deep
MIN_LAYERS = 3  # of a network whose layers have different factors

LOG_STEPS = "log steps"
NO_GRADIENT = "matrices without gradient"
OF_NETWORK = (
    LOG_STEPS,
    "log matrices",
    "mean log rows",
    "narrowest log rows",
    "mean log fan",
    "largest log fan",
    "share of convolutions",
    "share of vectors",
    "share of tables",
    "norms per matrix",
    "biases per matrix",
    "share of blocks",
    "deep without norms",
    "log matrices without norms",
    "log elements",
    "log outputs",
    "share of output",
)
"""Features that are known without the weights."""
OF_WEIGHTS = "mean log size", "least log size", "zero matrices", "mean excess"
OF_GRADIENTS = (
    "share of zeros",
    "largest share of zeros",
    NO_GRADIENT,
    "vectors' log share",
    "slope of gradients",
    "spread of gradients",
)
FEATURES = OF_NETWORK + OF_WEIGHTS + OF_GRADIENTS


class NetworkFeatures:
    """The features of a network, which its first step measures.

    Attributes:
        known: `OF_NETWORK`, on the device. matrices: see `matrices_of`.
    """

    def __init__(self, network: Network, total_steps: int):
        roles, shapes = network.roles, network.shapes
        known = known_features(roles, shapes, total_steps)
        dtype = precise_dtype(network.device)
        self.known = network.like.new_tensor(list(known.values()), dtype=dtype)
        self.matrices = matrices_of(roles)
        new = self.known.new_tensor
        # 1 / RMS of PyTorch's initial weights, which are uniform in +-fan ** -.5
        fans = [roles[i].fan_in for i in self.matrices]
        self._inverse = new([(3 * fan) ** 0.5 if fan else 1.0 for fan in fans])
        self._depths = new([roles[i].depth for i in self.matrices])
        self._numels = new(list(map(math.prod, shapes)))

    def __call__(self, measured: Measured) -> Tensor:
        """All features of a network with matrices, (d,)."""
        assert measured.excess is not None
        matrices = torch.tensor(self.matrices, device=self.known.device)
        sizes = measured.weight_rms[matrices].to(self.known) * self._inverse
        excesses = measured.excess[matrices].to(self.known)
        values = weight_features(sizes, excesses)
        values |= gradient_features(self._depths, self._numels, measured, self.matrices)
        return torch.cat((self.known, torch.stack(list(values.values()))))


def matrices_of(roles: Sequence[ParameterRole]) -> list[int]:
    """Indices of matrices, embeddings and outputs, in the order of the network.

    Unused ones come last.
    """
    matrices = [i for i, role in enumerate(roles) if role.blocks]
    return sorted(matrices, key=lambda i: _order(roles[i]))


def _order(role: ParameterRole) -> float:
    return math.inf if role.place is None else role.place


def layer_positions(roles: Sequence[ParameterRole]) -> list[float]:
    """From -1 at the first matrix to 1 at the last, in the order of the network.

    Vectors have the position of the matrix before them, or 0 without a place. All are 0
    if there are fewer than `MIN_LAYERS` matrices.
    """
    matrices = matrices_of(roles)
    positions = [0.0] * len(roles)
    if len(matrices) < MIN_LAYERS:
        return positions
    places = [_order(roles[i]) for i in matrices]
    layers = dict(zip(matrices, range(len(matrices)), strict=True))
    for i, role in enumerate(roles):
        if role.place is not None or role.blocks:
            layer = layers.get(i, max(bisect_right(places, _order(role)) - 1, 0))
            positions[i] = 2 * layer / (len(matrices) - 1) - 1
    return positions


def known_features(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]], total_steps: int
) -> dict[str, float]:
    """The features `OF_NETWORK`. roles, shapes: of all parameters."""
    names = [role.role for role in roles]
    norms = names.count("norm")
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    total = max(sum(map(math.prod, shapes)), 1)
    fans, rows = [0.0] * (not matrices), []
    log_outputs = 0.0
    kernels = several = 0  # convolutions, and blocks of more than one matrix
    elements: Counter[str] = Counter()  # of matrices, by role
    for i in matrices:
        height, *others = shapes[i]
        fans.append(math.log(max(math.prod(others), 1)))
        rows.append(math.log(max(height, 1)))
        kernels += len(shapes[i]) > 2
        several += sum(block.view.shape[0] > 1 for block in roles[i].blocks)
        elements[roles[i].role] += math.prod(shapes[i])
        if roles[i].role == "output":
            log_outputs = rows[-1]
    return {
        LOG_STEPS: math.log(total_steps / HORIZON),
        "log matrices": math.log(count),
        "mean log rows": sum(rows) / count,
        # those of the last are outputs
        "narrowest log rows": min(rows[:-1] or rows or [0.0]),
        "mean log fan": sum(fans) / count,
        "largest log fan": max(fans),
        "share of convolutions": kernels / count,
        "share of vectors": 1 - elements.total() / total,
        "share of tables": elements["embedding"] / total,
        "norms per matrix": min(norms / (2 * count), 1.0),
        "biases per matrix": names.count("bias") / count,
        "share of blocks": several / count,
        "deep without norms": max(count - SHALLOW, 0) ** 0.5 * (not norms),
        "log matrices without norms": math.log(count) * (not norms),
        "log elements": math.log(total),
        "log outputs": log_outputs,
        "share of output": elements["output"] / total,
    }


def weight_features(sizes: Tensor, excesses: Tensor) -> dict[str, Tensor]:
    """The features `OF_WEIGHTS`, () each.

    sizes: RMS of the initial weights of each matrix, in that of PyTorch's, (m,).
    excesses: see `spectral_excess`, (m,).
    """
    logs = sizes.clamp(min=MIN_SIZE).log()
    is_zero = logs < LOG_ZERO
    count = (~is_zero).sum()
    mean = torch.where(is_zero, 0.0, logs).sum() / count.clamp(min=1)
    least = torch.where(is_zero, torch.inf, logs).amin()
    least = torch.where(count > 0, least, 0.0)
    values = mean, least, is_zero.to(logs).mean(), excesses.mean()
    return dict(zip(OF_WEIGHTS, values, strict=True))


def gradient_features(
    depths: Tensor, numels: Tensor, measured: Measured, matrices: Sequence[int]
) -> dict[str, Tensor]:
    """The features `OF_GRADIENTS`, () each.

    "slope of gradients" is that of log |gradient| |weights| of matrices over depth, by
    least squares: gradients that vanish or explode. "spread of gradients" is its
    standard deviation, and "vectors' log share" that of parameters without matrices in
    the squared gradient. Gradients that are zero or not finite do not count; slope and
    spread also leave out zero matrices.

    depths: of the matrices' roles, (m,). numels: elements of all parameters, (n,).
    """
    assert measured.density is not None
    values = measured.weight_rms, measured.grad_rms, measured.density
    rms, grad_rms, density = (x.to(depths) for x in values)
    chosen = torch.tensor(matrices, device=depths.device)
    has_gradient = (grad_rms > 0) & (grad_rms < torch.inf)
    is_counted = has_gradient[chosen]
    zeros = torch.where(is_counted, 1 - density[chosen], 0.0)
    has_slope = is_counted & (rms[chosen] > 0)
    log_rms = torch.where(has_slope, rms[chosen], 1.0).log()
    product = log_rms + torch.where(has_slope, grad_rms[chosen], 1.0).log()
    norms = product + numels[chosen].log()
    slope, spread = _slope_and_spread(depths, product, norms, has_slope.to(depths))
    size = torch.where(has_gradient, grad_rms, 0.0)
    squares = (size / size.amax().clamp(min=TINY)).square() * numels
    of_matrices = squares[chosen].sum() / squares.sum().clamp(min=TINY)
    share = (1 - of_matrices).clamp(min=MIN_SHARE).log()
    share = torch.where(has_gradient.any(), share, 0.0)
    mean = zeros.sum() / is_counted.sum().clamp(min=1)
    absent = 1 - is_counted.to(depths).mean()
    values = mean, zeros.amax(), absent, share, slope, spread
    return dict(zip(OF_GRADIENTS, values, strict=True))


def _slope_and_spread(
    depths: Tensor, y: Tensor, norms: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The slope of y over depths, and the standard deviation of norms; (m,) each.

    weight: 0 of those left out, else 1.
    """
    share = weight / weight.sum().clamp(min=1)
    depths = depths - (share * depths).sum()
    above = (share * depths * y).sum()
    below = (share * depths.square()).sum()
    slope = torch.where(below > MIN_SIZE, above / below.clamp(min=MIN_SIZE), 0.0)
    centred = norms - (share * norms).sum()
    return slope, (share * centred.square()).sum().sqrt()
