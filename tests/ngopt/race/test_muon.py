import copy

import pytest
import torch
from torch import nn

from ngopt.race.muon import MuonWithAdam
from tests.ngopt.training import same, snapshot


def test_muon_of_kernels_equals_torchs_of_matrices():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
    bias = nn.Parameter(torch.randn(4))
    before = kernel.detach().clone()
    matrix, flat_bias = nn.Parameter(before.flatten(1).clone()), copy.deepcopy(bias)
    storage = kernel.data_ptr()
    ours = MuonWithAdam([kernel, bias], lr=0.1)
    theirs = [
        torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0),
        torch.optim.Adam([flat_bias], lr=0.1),
    ]
    for lr in (0.1, 0.1, 0.03):
        kernel.grad = torch.randn_like(kernel)
        bias.grad = torch.randn_like(bias)
        matrix.grad = kernel.grad.flatten(1).clone()
        flat_bias.grad = bias.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert torch.equal(bias, flat_bias)
    assert kernel.data_ptr() == storage
    assert (kernel != before).all()


def test_parameters_without_gradient_are_unchanged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    optimizer = MuonWithAdam(model.parameters(), lr=0.1)
    model(torch.randn(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    before = snapshot(model)
    optimizer.zero_grad()
    optimizer.step()
    assert same(model, before) and all(p.grad is None for p in model.parameters())


def test_kernels_without_a_matrix_view_are_an_error():
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3).to(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="contiguous kernels; got strides"):
        MuonWithAdam([kernel], lr=0.1)
