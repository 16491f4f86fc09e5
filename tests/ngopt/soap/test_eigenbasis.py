import numpy as np
import pytest
import torch

from ngopt.accelerator.soap import renewals_on_device
from ngopt.roles.buckets import Axis, MatrixLayout
from ngopt.soap.eigenbasis import (
    LIFT,
    MAX_ANGLE,
    RenewalSchedule,
    renewal_interval,
    renewal_positions,
    renewed,
)

CPU, META = torch.device("cpu"), torch.device("meta")


def factor(n=5, rank=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, rank or 2 * n, generator=generator, dtype=torch.float64)
    return (x @ x.mT).to(dtype)


def axes(n, dtype=torch.float64, count=2):
    return torch.eye(n, dtype=dtype).expand(count, n, n).contiguous()


def off_diagonal(f, q):
    """Share of Q^T P Q that is not on its diagonal."""
    s = q.mT @ f @ q
    d = torch.diag_embed(s.diagonal(dim1=1, dim2=2))
    return ((s - d).norm() / s.norm()).item()


SPECTRA = {
    "rank 1": torch.arange(40) < 1,
    "rank 5": torch.arange(40) < 5,
    "zero": torch.zeros(40),
    "condition": torch.logspace(0, -12, 40),
    "indefinite": torch.linspace(1.0, -0.01, 40),
    "equal": torch.ones(40),
}


class TestRenewal:
    def test_is_the_rotation_of_the_docstring(self):
        """Entry by entry, in numpy; the rotation has small angles."""
        n = 5
        p = np.diag(np.arange(1.0, n + 1)) + 0.02 * factor()[0].numpy()
        s, a = p, np.zeros((n, n))
        for i in range(n):
            for j in range(i + 1, n):
                sign = 1 if s[j, j] >= s[i, i] else -1
                lift = LIFT * np.diag(s).max()
                a[i, j] = sign * s[i, j] / (max(s[i, i], s[j, j]) + lift)
        a -= a.T
        assert np.sqrt(np.linalg.norm(a @ a)) < MAX_ANGLE
        q = np.eye(n) + a + a @ a / 2
        q = q @ (1.5 * np.eye(n) - 0.5 * q.T @ q)
        found = renewed(torch.tensor(p)[None], axes(n, count=1))
        np.testing.assert_allclose(found[0].numpy(), q, rtol=0, atol=1e-14)

    def test_to_first_order_it_is_orthogonal_iteration(self):
        """QR of the factor times axes that are nearly eigenvectors already."""
        p = torch.diag(torch.arange(5.0, 0.0, -1, dtype=torch.float64))
        p = (p + 1e-5 * factor()[0])[None]
        expected = torch.linalg.qr(p + LIFT * p.amax() * torch.eye(5))[0]
        expected = expected * expected.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
        found = renewed(p, axes(5, count=1))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-8)

    def test_renewals_converge_to_the_eigenvectors(self):
        f, q = factor(8), axes(8)
        for _ in range(300):
            q = renewed(f, q)
        assert off_diagonal(f, q) < 1e-6

    def test_what_has_no_gradient_leaves_a_basis_where_it_is(self):
        q = axes(4)[:, :, [2, 0, 3, 1]]
        torch.testing.assert_close(renewed(torch.zeros(2, 4, 4), q.float()), q.float())
        f = factor(4)
        f[:, 1] = f[:, :, 1] = 0
        q = axes(4)
        for _ in range(20):
            q = renewed(f, q)
        assert torch.equal(q[:, 1], axes(4)[:, 1])  # exactly
        assert torch.equal(q[:, :, 1], axes(4)[:, :, 1])

    @pytest.mark.parametrize("rank", [1, 2, 8])
    def test_a_basis_moves_with_the_neurons_and_rounding_does_not_choose_it(self, rank):
        """Also the null space of few examples has one."""
        f = factor(6, rank)
        order = torch.tensor([2, 0, 5, 4, 1, 3])
        noise = 1e-12 * factor(6, seed=3)
        q, moved = axes(6), axes(6)
        for _ in range(5):
            q = renewed(f, q)
            moved = renewed((f + noise)[:, order][:, :, order], moved)
            expected = q[:, order][:, :, order]
            torch.testing.assert_close(moved, expected, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", SPECTRA)
    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_hard_factors(self, dtype, kind, scale):
        u = torch.linalg.qr(factor(40)[0])[0]
        f = ((u * SPECTRA[kind].double()) @ u.mT * scale).to(dtype)[None]
        q = axes(40, dtype, 1)
        for _ in range(50):
            q = renewed(f, q)
            assert q.isfinite().all()
        error = (q.double().mT @ q.double() - torch.eye(40)).abs().max()
        # what is below 0 has no order, so that it is turned again and again
        is_settled = dtype == torch.float32 and kind != "indefinite"
        assert error < (1e-4 if is_settled else 0.05)
        if kind in ("rank 1", "rank 5"):
            f, q = f.double() / scale, q.double()
            assert off_diagonal(f, q) < (0.01 if dtype == torch.float32 else 0.1)


class TestSchedule:
    counts = {64: 8, 32: 30, 3: 4}  # noqa: RUF012

    def taken(self, step, every, counts=None):
        """Which bases are renewed at a step."""
        counts = counts or self.counts
        schedule = RenewalSchedule(renewal_positions(counts), every)
        taken = set()
        for size, indices, _ in schedule.at(step):
            taken |= {(size, i) for i in range(counts[size])[indices]}
        return taken

    @pytest.mark.parametrize("every", [1, 2, 5, 10])
    def test_a_round_takes_every_basis_once(self, every):
        steps = [self.taken(step, every) for step in range(200, 200 + every)]
        everything = {(size, i) for size, n in self.counts.items() for i in range(n)}
        assert set().union(*steps) == everything
        assert sum(map(len, steps)) == len(everything)

    def test_the_first_steps_take_all_then_fewer(self):
        for first, length in {7: 1, 8: 2, 18: 3, 90: 10, 400: 10}.items():
            steps = [self.taken(first + k, 10) for k in range(length)]
            assert sum(map(len, steps)) == sum(self.counts.values())
            assert (len(steps[0]) == sum(self.counts.values())) == (length == 1)

    @pytest.mark.parametrize("every", [2, 5, 10])
    def test_no_step_is_a_spike(self, every):
        counts = {256: 20, 128: 20, 8: 40}

        def work(step):
            return sum(size**3 for size, _ in self.taken(step, every, counts))

        found = [work(step) for step in range(100, 100 + every)]
        assert max(found) < 1.6 * sum(found) / every

    @pytest.mark.parametrize("step", [0, 9, 30, 101, 102, 107])
    def test_masks_on_the_device_are_the_same(self, step):
        positions = renewal_positions(self.counts)
        on_device = {size: torch.tensor(x) for size, x in positions.items()}
        renewals = renewals_on_device(on_device, 5, torch.tensor(float(step)))
        taken = set()
        for size, _, mask in renewals:
            taken |= {(size, i) for i in mask.flatten().nonzero()[:, 0].tolist()}
        assert taken == self.taken(step, 5)

    def test_of_nothing(self):
        assert list(RenewalSchedule(renewal_positions({}), 5).at(7)) == []


class TestInterval:
    def layouts(self, rows, columns):
        both = Axis("rows", 1, rows, columns), Axis("channels", 1, columns, rows)
        return [MatrixLayout((1, rows, columns, 1), both)]

    def test_on_a_cpu_flops_decide(self):
        # 6 (m^3 + n^3) for renewals, 4 m n (m + n) for all other products
        assert renewal_interval(self.layouts(100, 100), CPU) == 2  # 1.5 times as much
        assert renewal_interval(self.layouts(100, 300), CPU) == 3  # 3.5
        assert renewal_interval(self.layouts(32, 288), CPU) == 10  # 12
        assert renewal_interval([], CPU) == 2

    def test_on_accelerators_launches_decide(self):
        for sizes, expected in ((2, 2), (6, 2), (8, 5), (14, 5), (40, 10)):
            layouts = [self.layouts(8 + n, 90 + n)[0] for n in range(sizes // 2)]
            assert renewal_interval(layouts * 7, META) == expected
