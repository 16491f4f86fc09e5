from math import exp

import torch

from ngopt.metanets.features import (
    DECAYS,
    MOMENTA,
    next_records,
    preprocess,
    update_records_,
)


def test_momenta_in_closed_form():
    gradients = [torch.randn(3, dtype=torch.float64) for _ in range(7)]
    record = {key: torch.zeros(3, dtype=torch.float64) for key in MOMENTA}
    record["step"] = torch.zeros(())
    in_place = {key: value.clone() for key, value in record.items()}
    for gradient in gradients:
        (record,) = next_records([gradient], [record])
        update_records_([gradient], [in_place], limit=2)
    for decay, key in zip(DECAYS, MOMENTA, strict=True):
        powers = [(1 - decay) * decay ** (6 - t) for t in range(7)]
        expected = sum(c * g for c, g in zip(powers, gradients, strict=True))
        torch.testing.assert_close(record[key], expected)
        torch.testing.assert_close(in_place[key], expected)
    assert record["step"] == in_place["step"] == 7


def test_preprocessing_by_hand():
    x = [[1.0, -exp(-3.0)], [exp(-10.0), 0.0], [-0.5 * exp(-10.0), exp(2.0)]]
    expected = [[0, -0.3, 1, -1], [-1, -1, 1, 0], [-1, 0.2, -0.5, 1]]
    features = preprocess(torch.tensor(x, dtype=torch.float64).unbind(-1))
    torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64))


def test_preprocessing_has_finite_derivatives_everywhere():
    numbers = [[0.0], [1e-30], [-1e-5], [1.0], [-1e10], [exp(-10.0)]]
    x = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(preprocess(x.unbind(-1)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()
