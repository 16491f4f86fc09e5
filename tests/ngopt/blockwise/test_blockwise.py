"""`ngopt.BlockwiseOptimizer`: other optimizers on the matrices inside parameters."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ngopt
from ngopt import BlockwiseOptimizer
from tests.ngopt.audit.test_audit import TOKENS, Decoder
from tests.ngopt.blockwise.decoder import (
    MUON,
    Orthogonal,
    blockwise,
    decoder,
    hidden_of,
    loss_of,
    newton_schulz,
    train,
)
from tests.processes import run, whole

STEPS = 50


class Experts(nn.Module):
    """A stack of experts, a transposed matrix as in GPT-2, a kernel, a complex
    matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.experts = nn.Parameter(torch.randn(4, 8, 10) / 3)
        self.conv1d = nn.Parameter(torch.randn(10, 12) / 3)
        self.spectrum = nn.Parameter(torch.randn(12, 5, dtype=torch.cfloat) / 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mT
        y = torch.einsum("nti,eio->nto", y, self.experts).tanh() @ self.conv1d
        return self.head(((y.tanh() + 0j) @ self.spectrum).real)


def split_by_hand(fused: Decoder) -> Decoder:
    """The same function with separate q, k, v and separate halves."""
    split = decoder(is_fused=False)
    state = {}
    for name, value in fused.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module.endswith("qkv"):
            for part, x in zip("qkv", value.chunk(3), strict=True):
                state[f"{module.removesuffix('qkv')}{part}.{kind}"] = x
        elif module.endswith("w13"):
            for part, x in zip(("w1", "w3"), value.chunk(2), strict=True):
                state[f"{module.removesuffix('w13')}{part}.{kind}"] = x
        else:
            state[name] = value
    split.load_state_dict(state)
    return split


@pytest.mark.parametrize("name", ["exact", "torch"])
def test_it_is_the_inner_optimizer_on_a_network_that_is_split_by_hand(name):
    if name == "torch" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon")
    inner: Any = Orthogonal if name == "exact" else torch.optim.Muon
    fused = decoder()
    split = split_by_hand(fused)
    optimizer = BlockwiseOptimizer(
        fused, TOKENS, inner, MUON, others_options={"lr": 1e-3, "weight_decay": 0}
    )
    hidden = hidden_of(split)
    others = [p for p in split.parameters() if all(p is not q for q in hidden)]
    by_hand = (
        inner(hidden, **MUON),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0),
    )
    for step, loss in enumerate(train(fused, optimizer, range(STEPS))):
        split.zero_grad()
        of_split = loss_of(split, step)
        of_split.backward()
        for other in by_hand:
            other.step()
        assert abs(loss - of_split.item()) < 1e-6, step


@pytest.mark.parametrize("takes_stacks", [False, True])
def test_pieces_are_the_matrices_of_the_graph(takes_stacks):
    model = decoder()
    optimizer = blockwise(model, heads=1, takes_stacks=takes_stacks)
    assert optimizer.inner is not None
    pieces = optimizer.inner.param_groups[0]["params"]
    shapes = [tuple(p.shape) for p in pieces[:3]]
    expected = (6, 8, 16) if takes_stacks else (8, 16)
    assert shapes[0] == expected
    assert pieces[0].data_ptr() == model.blocks[0].qkv.weight.data_ptr()
    count = sum(p.numel() for p in pieces)
    assert count == sum(p.numel() for p in hidden_of(model))


def test_stacks_and_single_matrices_are_the_same_training():
    runs = []
    for takes_stacks in (False, True):
        model = decoder()
        optimizer = blockwise(model, heads=1, takes_stacks=takes_stacks)
        runs.append(train(model, optimizer, range(10)))
    assert runs[0] == pytest.approx(runs[1], abs=1e-9)


def test_a_scheduler_a_scaler_and_a_closure():
    model = decoder()
    optimizer = blockwise(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [0.02, *[1e-3] * 4], total_steps=9, cycle_momentum=False
    )
    scaler = torch.amp.GradScaler("cpu")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    rates = []
    for _ in range(8):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.step(closure)
        assert optimizer.inner is not None
        rates.append(optimizer.inner.param_groups[0]["lr"])
    assert len(set(rates)) == 8
    assert optimizer.param_groups[0]["lr"] == rates[-1]
    assert loss_of(model) < first


def test_a_compiled_step_of_the_inner_optimizer():
    def compiled(groups: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, **options)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        return optimizer

    runs = []
    for inner in (torch.optim.SGD, compiled):
        model = decoder()
        optimizer = BlockwiseOptimizer(
            model, TOKENS, inner, {"lr": 0.1, "momentum": 0.9}
        )
        runs.append(train(model, optimizer, range(6)))
    assert runs[0] == runs[1]


def test_an_infinite_gradient_is_skipped_by_a_scaler():
    model = decoder()
    optimizer = blockwise(model)
    scaler = torch.amp.GradScaler("cpu")
    before = copy.deepcopy(model.state_dict())
    scaler.scale(loss_of(model) * torch.inf).backward()
    scaler.step(optimizer)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


def test_a_parameter_without_a_gradient_is_not_changed():
    model = decoder()
    optimizer = blockwise(model, others=torch.optim.SGD)
    train(model, optimizer, range(2))
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    loss_of(model).backward()
    model.blocks[0].qkv.weight.grad = None
    model.tok.weight.grad = None
    optimizer.step()
    unchanged = {
        key for key, x in model.state_dict().items() if torch.equal(x, before[key])
    }
    assert unchanged == {"blocks.0.qkv.weight", "tok.weight"}


def test_new_values_and_types_of_parameters_are_followed():
    model = decoder()
    optimizer = blockwise(model)
    train(model, optimizer, range(2))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    for p in model.parameters():
        p.data = p.data.clone()
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(1))
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), key


def test_a_tied_matrix_is_in_one_group():
    model = decoder()
    model.head.weight = model.tok.weight
    optimizer = blockwise(model)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(params) == len(set(params)) == len(list(model.parameters()))


def test_matrices_without_a_view_are_copied():
    torch.manual_seed(0)
    model = Experts().to(memory_format=torch.preserve_format)
    model.conv.weight.data = model.conv.weight.data.permute(2, 0, 1).contiguous()
    model.conv.weight.data = model.conv.weight.data.permute(1, 2, 0)  # not contiguous
    x = torch.randn(2, 6, 7)
    optimizer = BlockwiseOptimizer(model, x, Orthogonal, MUON)
    assert optimizer.inner is not None
    shapes = [
        tuple(p.shape)
        for group in optimizer.inner.param_groups
        for p in group["params"]
    ]
    assert (8, 18) in shapes and (12, 10) in shapes and shapes.count((10, 8)) == 4
    before = copy.deepcopy(model.state_dict())
    model(x).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    optimizer.step()
    update = before["conv.weight"] - model.conv.weight.detach()
    expected = newton_schulz(gradients["conv.weight"].flatten(1))
    torch.testing.assert_close(update.flatten(1), 0.02 * expected)
    update = (before["conv1d"] - model.conv1d.detach()).mT
    expected = newton_schulz(gradients["conv1d"].mT)
    torch.testing.assert_close(update, 0.02 * 1.2 * expected)
    assert not torch.equal(before["spectrum"], model.spectrum)


def test_it_is_right_in_an_audit_and_prints_its_groups():
    model = decoder()
    optimizer = blockwise(model)
    assert ngopt.audit(optimizer, model, TOKENS).is_right
    first, _, matrices, embedding, *_ = repr(optimizer).splitlines()
    assert first == "BlockwiseOptimizer"
    assert matrices.split() == ["Orthogonal", "matrix", "8", "14", "0.02", "0"]
    assert embedding.split() == ["AdamW", "embedding", "1", "0.001", "0.01"]


def test_arguments_that_do_not_fit_are_errors():
    model = decoder()
    with pytest.raises(TypeError, match="BlockwiseOptimizer: model: expected"):
        BlockwiseOptimizer([torch.zeros(2)], None, Orthogonal)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example_input: .* got the class Orthogonal"):
        BlockwiseOptimizer(model, Orthogonal, MUON)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inner: expected a class of .* got str"):
        BlockwiseOptimizer(model, TOKENS, "muon")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inner_options: expected a dict"):
        BlockwiseOptimizer(model, TOKENS, Orthogonal, 0.02)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a model with a hidden matrix"):
        BlockwiseOptimizer(nn.LayerNorm(4), torch.zeros(2, 4), Orthogonal, MUON)
    with pytest.raises(ValueError, match="heads: expected a number"):
        blockwise(model, heads=0)
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0.weight': .* lazy module"):
        BlockwiseOptimizer(lazy, torch.zeros(2, 4), Orthogonal, MUON)

    def of_several_groups(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p]} for p in groups[0]["params"]], 0.1)

    with pytest.raises(ValueError, match="inner: .* keeps its group; got 14 groups"):
        BlockwiseOptimizer(model, TOKENS, of_several_groups)


def test_a_step_that_failed_leaves_no_gradient():
    model = decoder()
    optimizer = blockwise(model)
    assert optimizer.others is not None
    hook = optimizer.others.register_step_pre_hook(lambda *_: 1 / 0)
    loss_of(model).backward()
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    hook.remove()
    optimizer.zero_grad()
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_matrix_without_elements():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 0), nn.Linear(0, 3))
    optimizer = BlockwiseOptimizer(model, torch.zeros(2, 4), torch.optim.SGD)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_fully_sharded_networks_train_as_whole_ones():
    run(_compare_sharded, 2)


def _compare_sharded(rank: int, size: int) -> None:
    expected = decoder()
    train(expected, blockwise(expected, others=torch.optim.SGD), range(5))
    model = decoder()
    mesh = init_device_mesh("cpu", (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = blockwise(model, others=torch.optim.SGD)
    train(model, optimizer, range(5))
    for p, q in zip(whole(model), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=0, atol=1e-8)
    assert distributed.get_rank() == rank
