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
    # ours in float32, theirs in bfloat16
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=2e-3)
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


def test_state_dicts_resume():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3)]
    whole = nn.Sequential(*layers)
    resumed = copy.deepcopy(whole)
    images = torch.randn(8, 2, 3, 3)

    def optimizer_of(model):
        table = [model[2].weight]
        return MuonWithAdam(model.parameters(), 0.1, table, weight_decay=0.1)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()

    first, optimizer = optimizer_of(whole), optimizer_of(resumed)
    for number in range(6):
        step(whole, first)
        step(resumed, optimizer)
        if number == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(resumed)
            optimizer.load_state_dict(saved)
    assert same(resumed, snapshot(whole))


def test_vectors_have_no_weight_decay():
    params = [nn.Parameter(torch.ones(shape)) for shape in ((3, 3), (3, 3), (3,))]
    optimizer = MuonWithAdam(params, 0.1, [params[1]], weight_decay=0.1)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    values = [p.mean().item() for p in params]
    assert values == pytest.approx([0.99, 0.99, 1.0])
