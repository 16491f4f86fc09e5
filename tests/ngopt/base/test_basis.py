import numpy as np
import pytest
import torch

from ngopt.base.basis import LIFT, first_basis, renewed_basis


def factor(n=5, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(
        2, n, rank or 2 * n, generator=generator, dtype=torch.float64
    )
    return x @ x.mT


def test_the_first_basis_is_one_qr_step_from_the_axes():
    for scale in (1.0, 1e-20, 1e20):
        found = first_basis(factor() * scale)
        for k in range(2):
            f = factor()[k].numpy()
            order = np.argsort(-np.diag(f))
            expected, _ = np.linalg.qr(
                (f + LIFT * np.diag(f).max() * np.eye(5))[:, order]
            )
            np.testing.assert_allclose(
                np.abs(found[k].numpy()),
                np.abs(expected),
                rtol=1e-8,
                atol=1e-11,
            )


def test_the_first_basis_of_nothing_is_orthogonal():
    basis = first_basis(torch.zeros(1, 3, 3))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3).unsqueeze(0))


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_a_basis_moves_with_the_neurons_and_rounding_does_not_choose_it(rank):
    """Also the null space of few examples has one."""
    f = factor(6, rank)
    order = torch.tensor([2, 0, 5, 4, 1, 3])
    noise = 1e-12 * factor(6, seed=3)
    basis = first_basis(f)
    moved = first_basis((f + noise)[:, order][:, :, order])
    for _ in range(4):
        torch.testing.assert_close(
            moved.abs(), basis[:, order].abs(), rtol=0, atol=1e-7
        )
        basis, _ = renewed_basis(f, basis)
        moved, _ = renewed_basis((f + noise)[:, order][:, :, order], moved)


def test_renewal_is_a_qr_step_in_the_order_of_rayleigh_quotients():
    old = torch.linalg.eigh(factor(seed=1))[1][..., [3, 0, 4, 1, 2]]
    found, order = renewed_basis(factor(), old)
    for k in range(2):
        f, q = factor()[k].numpy(), old[k].numpy()
        quotients = np.array([q[:, i] @ f @ q[:, i] for i in range(5)])
        expected_order = np.argsort(-quotients)
        assert order[k].tolist() == expected_order.tolist()
        lifted = f + LIFT * quotients.max() * np.eye(5)
        expected, _ = np.linalg.qr((lifted @ q)[:, expected_order])
        np.testing.assert_allclose(
            np.abs(found[k].numpy()), np.abs(expected), rtol=1e-9, atol=1e-12
        )


def test_renewals_converge_to_the_eigenvectors():
    basis = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    for _ in range(300):
        basis, _ = renewed_basis(factor(), basis)
    found = basis.mT @ factor() @ basis
    values = torch.linalg.eigvalsh(factor()).flip(-1)
    torch.testing.assert_close(
        found, torch.diag_embed(values), rtol=1e-6, atol=1e-6
    )


def test_what_has_no_gradient_leaves_a_basis_where_it_is():
    eye = torch.eye(4)[None, :, [2, 0, 3, 1]]
    found, order = renewed_basis(torch.zeros(1, 4, 4), eye)
    torch.testing.assert_close(found.abs(), eye)
    assert order.tolist() == [[0, 1, 2, 3]]
    one_row = torch.diag(torch.tensor([0.0, 5.0, 0.0, 0.0]))[None]
    found, _ = renewed_basis(one_row, torch.eye(4)[None])
    assert (found.abs() > 0).sum() == 4  # still the axes
