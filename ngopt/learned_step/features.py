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

from ngopt.roles.from_graph import ParameterRole
from ngopt.soap.config import Measured

HORIZON = 500  # steps
LOG_ZERO = -9.0  # log of a matrix' size below which it is zero
MIN_SIZE = 1e-4  # size of a matrix
MIN_SHARE = math.exp(-10)  # of vectors in the squared gradient
TINY = 1e-30
SHALLOW = 6  # matrices of a network that is not deep
MIN_LAYERS = 3  # of a network whose layers have different factors

OF_NETWORK = (
    "log steps",
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
    "matrices without gradient",
    "vectors' log share",
    "slope of gradients",
    "spread of gradients",
)
FEATURES = OF_NETWORK + OF_WEIGHTS + OF_GRADIENTS


def matrices_of(roles: Sequence[ParameterRole]) -> list[int]:
    """Indices of matrices, embeddings and outputs, in the order of the network.

    Unused ones come last.
    """
    found = [i for i, role in enumerate(roles) if role.blocks]
    return sorted(found, key=lambda i: _order(roles[i]))


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
            before = bisect_right(places, _order(role)) - 1
            layer = layers.get(i, max(before, 0))
            positions[i] = 2 * layer / (len(matrices) - 1) - 1
    return positions


def known_features(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]], total_steps: int
) -> dict[str, float]:
    """The features `OF_NETWORK`. roles, shapes: of all parameters."""
    found = {"log steps": math.log(total_steps / HORIZON)}
    found |= _of_layers(roles) | _of_shapes(roles, shapes)
    return {name: found[name] for name in OF_NETWORK}


def _of_layers(roles: Sequence[ParameterRole]) -> dict[str, float]:
    """Depth, norms and biases."""
    names = [role.role for role in roles]
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    norms = names.count("norm")
    blocks = 0  # of more than one
    for i in matrices:
        for block in roles[i].blocks:
            blocks += block.view.shape[0] > 1
    return {
        "log matrices": math.log(count),
        "norms per matrix": min(norms / (2 * count), 1.0),
        "biases per matrix": names.count("bias") / count,
        "share of blocks": blocks / count,
        "deep without norms": max(count - SHALLOW, 0) ** 0.5 * (not norms),
        "log matrices without norms": math.log(count) * (not norms),
    }


def _of_shapes(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]]
) -> dict[str, float]:
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    numels = list(map(math.prod, shapes))
    total = max(sum(numels), 1)
    fans, rows = [0.0] * (not matrices), []
    kernels = of_matrices = 0
    by_role: Counter[str] = Counter()  # elements of matrices
    found = {"log outputs": 0.0}
    for i in matrices:
        height, *others = shapes[i]
        fans.append(math.log(max(math.prod(others), 1)))
        rows.append(math.log(max(height, 1)))
        kernels += len(shapes[i]) > 2
        of_matrices += numels[i]
        by_role[roles[i].role] += numels[i]
        if roles[i].role == "output":
            found["log outputs"] = rows[-1]
    found["mean log rows"] = sum(rows) / count
    # those of the last are outputs
    found["narrowest log rows"] = min(rows[:-1] or rows or [0.0])
    found["mean log fan"] = sum(fans) / count
    found["largest log fan"] = max(fans)
    found["share of convolutions"] = kernels / count
    found["share of vectors"] = 1 - of_matrices / total
    found["share of tables"] = by_role["embedding"] / total
    found["log elements"] = math.log(total)
    found["share of output"] = by_role["output"] / total
    return found


def inverse_init_rms(
    roles: Sequence[ParameterRole], matrices: Sequence[int]
) -> list[float]:
    """1 / RMS of PyTorch's initial weights, of each matrix.

    These are uniform in +-fan ** -.5, so that their RMS is (3 fan) ** -.5.
    """
    found = []
    for i in matrices:
        fan = roles[i].fan_in
        found.append((3 * fan) ** 0.5 if fan else 1.0)
    return found


def weight_features(sizes: Tensor, excesses: Tensor) -> dict[str, Tensor]:
    """The features `OF_WEIGHTS`, () each.

    sizes: RMS of the initial weights of each matrix, in that of PyTorch's, (m,).
    excesses: see `spectral_excess`, (m,).
    """
    logs = sizes.clamp(min=MIN_SIZE).log()
    is_zero = logs < LOG_ZERO
    count = (~is_zero).sum()
    total = torch.where(is_zero, 0.0, logs).sum()
    mean = total / count.clamp(min=1)
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
    rms = measured.weight_rms.to(depths)
    grad_rms = measured.grad_rms.to(depths)
    density = measured.density.to(depths)
    chosen = torch.tensor(matrices, device=depths.device)
    has_gradient = (grad_rms > 0) & (grad_rms < torch.inf)
    is_counted = has_gradient[chosen]
    zeros = torch.where(is_counted, 1 - density[chosen], 0.0)
    has_slope = is_counted & (rms[chosen] > 0)
    log_rms = torch.where(has_slope, rms[chosen], 1.0).log()
    product = log_rms + torch.where(has_slope, grad_rms[chosen], 1.0).log()
    norms = product + numels[chosen].log()
    weight = has_slope.to(depths)
    slope, spread = _slope_and_spread(depths, product, norms, weight)
    size = torch.where(has_gradient, grad_rms, 0.0)
    relative = size / size.amax().clamp(min=TINY)
    squares = relative.square() * numels
    total = squares.sum().clamp(min=TINY)
    of_matrices = squares[chosen].sum() / total
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
    ratio = above / below.clamp(min=MIN_SIZE)
    slope = torch.where(below > MIN_SIZE, ratio, 0.0)
    centred = norms - (share * norms).sum()
    return slope, (share * centred.square()).sum().sqrt()
