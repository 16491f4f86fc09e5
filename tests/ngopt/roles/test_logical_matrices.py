"""`ngopt.matrices` and `ngopt.optimizer_groups`."""

import json

import pytest
import torch
from torch import nn

import ngopt
from ngopt.roles.logical_matrices import Axis, nested_axes
from tests.ngopt.roles.labelled.check import network

TOKENS = torch.arange(16).expand(2, 16)


class TwoLayers(nn.Module):
    """A table that is also the output matrix, a parameter that is not used, a stack."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.unused = nn.Parameter(torch.zeros(3))
        self.stack = nn.Parameter(torch.randn(2, 8, 8))
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + torch.tanh(x @ self.stack[0]) + torch.relu(x @ self.stack[1])
        return self.norm(self.hidden(x)) @ self.table.weight.T


@pytest.mark.parametrize("heads", [None, 1, 2, 4])
def test_every_element_is_in_one_matrix(heads):
    model, example = network("gpt_neox")
    for name, stacks in ngopt.matrices(model, example, heads).items():
        p = model.get_parameter(name)
        numbers = torch.arange(p.numel()).reshape(p.shape)
        read = [stack.read(numbers).flatten() for stack in stacks]
        if p.dim() > 1:
            assert torch.equal(torch.cat(read).sort().values, numbers.flatten())
        else:
            assert not read


@pytest.mark.parametrize(
    ("heads", "shapes"), [(None, [(3, 32, 32)]), (2, [(6, 16, 32)]), (1, [(12, 8, 32)])]
)
def test_heads_of_interleaved_queries_keys_and_values(heads, shapes):
    model, example = network("gpt_neox")
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    stacks = ngopt.matrices(model, example, heads)[name]
    assert [stack.shape for stack in stacks] == shapes
    if heads is None:
        # [head, part, size]: the queries
        weight = model.get_parameter(name)
        queries = weight.unflatten(0, (4, 3, 8))[:, 0].flatten(0, 1)
        assert torch.equal(stacks[0].read(weight)[0], queries)


@pytest.mark.parametrize("heads", [None, 2])
def test_written_matrices_are_read_again(heads):
    model, example = network("q_gate_kv")
    name = "layers.0.attention.linear_qkv.weight"
    stacks = ngopt.matrices(model, example, heads)[name] if heads is None else None
    if stacks is None:
        with pytest.raises(ValueError, match="heads: expected a divisor of 3"):
            ngopt.matrices(model, example, heads)
        return
    target = torch.zeros(180, 48)
    for number, stack in enumerate(stacks, 1):
        stack.write(target, torch.full(stack.shape, float(number)))
    for number, stack in enumerate(stacks, 1):
        assert (stack.read(target) == number).all()
    assert (target > 0).all()


def test_one_matrix_is_a_view():
    model, example = network("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight  # Conv1D, (in, out)
    (stack,) = ngopt.matrices(model, example)["transformer.h.0.mlp.c_fc.weight"]
    matrix = stack.read(weight.detach())
    assert torch.equal(matrix[0], weight.T) and stack.is_transposed
    assert matrix.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_matrices_of_a_tensor_that_is_not_contiguous():
    model, example = network("gpt_neox")
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    (stack,) = ngopt.matrices(model, example)[name]
    weight = model.get_parameter(name).detach().clone()
    for other in (
        weight.T.contiguous().T,
        torch.stack([weight, torch.zeros_like(weight)], -1)[..., 0],
    ):
        assert torch.equal(stack.read(other), stack.read(weight))
        stack.write(other, torch.zeros(stack.shape))
        assert not other.any()
        stack.write(other, stack.read(weight))
        assert torch.equal(other, weight)
    with pytest.raises(ValueError, match="more than 3071 elements; got 4"):
        stack.read(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="write: expected matrices of shape"):
        stack.write(weight, torch.zeros(1, 2, 3))


def test_json():
    model, example = network("gpt2")
    (stack,) = ngopt.matrices(model, example)["transformer.h.0.attn.c_attn.weight"]
    described = json.loads(json.dumps(stack.to_json()))
    rows, columns = model.transformer.h[0].attn.c_attn.weight.shape[::-1]
    assert described == {
        "shape": [3, rows // 3, columns],
        "offset": 0,
        "batch": [[3, rows // 3]],
        "rows": [[rows // 3, 1]],
        "columns": [[columns, rows]],
        "transposed": True,
    }


def test_numbers_of_heads_are_checked():
    with pytest.raises(ValueError, match="heads: expected a number > 0 or None; got 0"):
        ngopt.matrices(nn.Linear(2, 2), torch.zeros(1, 2), heads=0)


@pytest.mark.parametrize(
    ("offsets", "axes"),
    [
        ([3], ()),
        ([0, 4, 8], ((3, 4),)),
        ([0, 1, 10, 11, 20, 21], ((3, 10), (2, 1))),
        ([0, 1, 3], None),
        ([0, 1, 4, 6], None),
    ],
)
def test_nested_axes(offsets, axes):
    assert nested_axes(offsets) == (axes and tuple(Axis(*axis) for axis in axes))


def test_groups_have_every_parameter_once():
    model = TwoLayers()
    groups = ngopt.optimizer_groups(model, TOKENS)
    names = {group["role"]: group["param_names"] for group in groups}
    assert names == {
        "matrix": ["hidden.weight"],
        "stack": ["stack"],
        "embedding": ["table.weight"],
        "norm": ["norm.weight", "norm.bias"],
        "bias": ["hidden.bias"],
        "other": ["unused"],
    }
    decay = {group["role"]: group.get("weight_decay") for group in groups}
    assert decay["norm"] == decay["bias"] == decay["other"] == 0
    assert decay["matrix"] is None
    torch.optim.AdamW(groups)


def test_groups_of_a_cnn_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        example = torch.zeros(1, 1, 8, 8)
    roles = [group["role"] for group in ngopt.optimizer_groups(model, example)]
    assert roles == ["convolution", "output", "bias"]
    groups = ngopt.optimizer_groups(model, example, convolutions=True)
    assert [group["role"] for group in groups] == ["matrix", "output", "bias"]


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).requires_grad_(False)
    model[1].weight.requires_grad_(True)
    (group,) = ngopt.optimizer_groups(model, torch.zeros(1, 2))
    assert group["param_names"] == ["1.weight"]


def test_groups_expect_a_module():
    with pytest.raises(TypeError, match="optimizer_groups: model: expected a torch.nn"):
        ngopt.optimizer_groups([torch.zeros(2)])
