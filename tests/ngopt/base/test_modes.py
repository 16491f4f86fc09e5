"""Each mode against einsum over all indices; values are (groups, rows, kernel, channels)."""

import pytest
import torch

from ngopt.base.modes import Channels, Kernel, Rows, factor_shape

G, O, K, I = 2, 6, 3, 4  # noqa: E741
MODES = {
    "rows": Rows(1, O),
    "heads": Rows(3, O // 3),
    "kernel": Kernel(K),
    "channels": Channels(1, I),
    "cut channels": Channels(2, I // 2),
}


def values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(G, O, K, I, generator=generator, dtype=torch.float64)


def unfolded(mode, x):
    """(groups, parts, size, rest) and the way back."""
    if isinstance(mode, Kernel):
        return x.permute(0, 2, 1, 3).reshape(G, 1, K, O * I)
    if isinstance(mode, Rows):
        return x.reshape(G, mode.parts, mode.size, K * I)
    split = x.reshape(G, O, K, mode.parts, mode.size)
    return split.permute(0, 3, 4, 1, 2).reshape(G, mode.parts, mode.size, O * K)


def folded(mode, x):
    if isinstance(mode, Kernel):
        return x.reshape(G, K, O, I).permute(0, 2, 1, 3)
    if isinstance(mode, Rows):
        return x.reshape(G, O, K, I)
    split = x.reshape(G, mode.parts, mode.size, O, K)
    return split.permute(0, 3, 4, 1, 2).reshape(G, O, K, I)


def some_bases(mode):
    generator = torch.Generator().manual_seed(1)
    shape = factor_shape(mode, G)
    return torch.linalg.qr(
        torch.randn(shape, generator=generator, dtype=torch.float64)
    )[0]


def per_part(mode, basis):
    return basis.reshape(G, -1, mode.size, mode.size)


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def test_factors(mode):
    x = unfolded(mode, values())
    expected = torch.einsum("gpir,gpjr->gpij", x, x).reshape(
        factor_shape(mode, G)
    )
    x = mode.unfolded(values())
    torch.testing.assert_close(x @ x.mT, expected)


def test_rotations(mode):
    basis = some_bases(mode)
    x = unfolded(mode, values())
    q = per_part(mode, basis)
    expected = folded(mode, torch.einsum("gpij,gpir->gpjr", q, x))
    torch.testing.assert_close(mode.rotate(values(), basis), expected)
    torch.testing.assert_close(mode.rotate(expected, basis.mT), values())


def test_permutations(mode):
    """Permuted after a rotation is rotated by the permuted basis."""
    basis = some_bases(mode)
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(basis.shape[:-1], generator=generator).argsort(-1)
    columns = basis.gather(-1, order.unsqueeze(-2).expand_as(basis))
    found = mode.permute(mode.rotate(values(), basis), order)
    torch.testing.assert_close(found, mode.rotate(values(), columns))


def test_all_modes_and_back():
    modes = (MODES["heads"], MODES["kernel"], MODES["cut channels"])
    bases = {mode.name: some_bases(mode) for mode in modes}
    found = values()
    for mode in modes:
        found = mode.rotate(found, bases[mode.name])
    expected = torch.einsum(
        "gpokic,gpoj,gkl,gicd->gpjlid",
        values().reshape(G, 3, 2, K, 2, 2),
        bases["rows"].view(G, 3, 2, 2),
        bases["kernel"],
        bases["channels"].view(G, 2, 2, 2),
    )
    torch.testing.assert_close(found, expected.reshape(G, O, K, I))
    for mode in modes:
        found = mode.rotate(found, bases[mode.name].mT)
    torch.testing.assert_close(found, values())
