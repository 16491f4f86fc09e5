from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.base.layout import MatrixLayout, layouts_of
from ngopt.base.modes import Channels, Kernel, Rows
from ngopt.graph.core import View
from ngopt.roles import ParameterRole, roles_of


class Attention(nn.Module):
    """Two heads of four."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 12, batch_first=True, dropout=0.0
        )
        self.out = nn.Linear(8, 11)

    def forward(self, x):
        return self.out(self.layer(self.tokens(x)))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 5),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(6, 5, 3),
    )


def found_layouts(model, example=None, longest=1024, budget=8.0):
    graph = build_graph(model, example)
    roles = roles_of(graph)
    pairs = zip(roles, graph.parameters, strict=True)
    return {
        role.name: layouts_of(role, spec.shape, longest, budget)
        for role, spec in pairs
    }


def the_one(layouts):
    (layout,) = layouts
    return layout


def tokens():
    return torch.zeros(1, 5, dtype=torch.long)


class TestModes:
    def test_of_a_transformer(self):
        found = found_layouts(Attention(), tokens())
        packed = the_one(found["layer.self_attn.in_proj_weight"])
        assert packed.shape == (1, 24, 1, 8)
        # q, k, v of two heads; one input
        assert packed.modes == (
            Rows(6, 4),
            Channels(1, 8),
        )
        assert the_one(found["layer.linear2.weight"]).modes == (
            Rows(1, 8),
            Channels(1, 12),
        )
        assert the_one(found["out.weight"]).modes == (
            Rows(1, 11),
            Channels(1, 8),
        )
        table = the_one(found["tokens.weight"])
        assert (table.shape, table.modes) == ((1, 11, 1, 8), (Channels(1, 8),))
        for name in ("layer.norm1.weight", "layer.linear1.bias"):
            assert the_one(found[name]).modes == ()
            assert the_one(found[name]).shape[:3] == (1, 1, 1)

    def test_of_convolutions(self):
        found = found_layouts(convolutions(), torch.randn(1, 3, 16, 16))
        assert the_one(found["0.weight"]).shape == (1, 4, 1, 75)
        grouped = the_one(found["1.weight"])
        assert (grouped.shape, grouped.modes) == (
            (2, 3, 1, 18),
            (Rows(1, 3), Channels(1, 18)),
        )
        depthwise = the_one(found["2.weight"])
        assert (depthwise.shape, depthwise.modes) == (
            (1, 6, 1, 9),
            (Rows(1, 6), Channels(1, 9)),
        )
        transposed = the_one(found["3.weight"])
        assert transposed.shape == (1, 5, 1, 54)

    def test_of_gates(self):
        found = found_layouts(nn.GRU(3, 4), torch.randn(2, 1, 3))
        assert the_one(found["weight_hh_l0"]).modes == (
            Rows(3, 4),
            Channels(1, 4),
        )

    def test_kernel_and_channels_are_apart_beyond_300_columns(self):
        model = nn.Sequential(
            nn.Conv2d(3, 33, 3), nn.Conv2d(33, 34, 3), nn.Conv2d(34, 5, 3)
        ).eval()
        found = found_layouts(model, torch.randn(1, 3, 9, 9))
        within = the_one(found["1.weight"])
        assert (within.shape, within.modes[1:]) == (
            (1, 34, 1, 297),
            (Channels(1, 297),),
        )
        beyond = the_one(found["2.weight"])
        assert beyond.shape == (1, 5, 9, 34)
        assert beyond.modes == (Rows(1, 5), Kernel(9), Channels(1, 34))

    def test_inputs_are_cut_and_hidden_neurons_are_not(self):
        found = found_layouts(
            nn.Sequential(nn.Linear(784, 32), nn.Linear(32, 5))
        )
        assert the_one(found["0.weight"]).modes == (
            Rows(1, 32),
            Channels(4, 196),
        )
        found = found_layouts(
            nn.Sequential(nn.Linear(5, 784), nn.Linear(784, 32))
        )
        assert the_one(found["1.weight"]).modes == (Rows(1, 32),)

    def test_budget_and_length(self):
        model = nn.Sequential(
            nn.Linear(5, 400), nn.Linear(400, 500), nn.Linear(500, 3)
        )
        # 2 * 400^2 numbers for 200,000 elements are 1.6 for each, 2 * 500^2 are 2.5
        modes = {
            8.0: (Rows(1, 500), Channels(1, 400)),
            2.0: (Channels(1, 400),),
            1.0: (),
        }
        for budget, expected in modes.items():
            found = the_one(
                found_layouts(model, budget=budget)["1.weight"]
            ).modes
            if expected:
                assert found == expected
        found = the_one(found_layouts(model, longest=450)["1.weight"])
        assert found.modes == (Channels(1, 400),)

    def test_sides_of_one_have_no_factor(self):
        found = found_layouts(nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)))
        assert the_one(found["0.weight"]).modes == (Rows(1, 3),)
        assert the_one(found["1.weight"]).modes == (Channels(1, 3),)

    def test_of_nothing_and_of_single_numbers(self):
        found = found_layouts([torch.zeros(3), torch.zeros(())])
        assert [the_one(layouts).shape for layouts in found.values()] == [
            (1, 1, 1, 3),
            (1, 1, 1, 1),
        ]
        empty = ParameterRole("empty", "other")
        assert the_one(layouts_of(empty, (0, 3), 1024, 8.0)).shape == (
            1,
            1,
            1,
            0,
        )


class TestValues:
    def test_of_a_table_and_of_a_whole_matrix(self):
        table = the_one(found_layouts(Attention(), tokens())["tokens.weight"])
        p = torch.randn(11, 8)
        assert torch.equal(
            table.read(p.flatten())[0, :, 0], p
        )  # rows of it are tokens
        found = found_layouts(convolutions(), torch.randn(1, 3, 16, 16))
        p = torch.randn(6, 2, 3, 3)
        assert torch.equal(
            the_one(found["1.weight"]).read(p.flatten()),
            p.reshape(2, 3, 18).unsqueeze(2),
        )

    def test_kernel_positions_come_before_channels(self):
        layout = MatrixLayout((1, 2, 9, 4))
        p = torch.randn(2, 4, 3, 3)
        expected = np.einsum("oixy->oxyi", p.numpy()).reshape(2, 9, 4)
        np.testing.assert_array_equal(
            layout.read(p.flatten())[0].numpy(), expected
        )

    def test_of_a_transposed_convolution(self):
        layout = the_one(
            found_layouts(convolutions(), torch.randn(1, 3, 16, 16))["3.weight"]
        )
        p = torch.randn(6, 5, 3, 3)
        assert torch.equal(
            layout.read(p.flatten())[0, :, 0], p.transpose(0, 1).reshape(5, 54)
        )

    def test_of_packed_heads(self):
        """Each head's rows, wherever they are in the parameter."""
        packed = the_one(
            found_layouts(Attention(), tokens())[
                "layer.self_attn.in_proj_weight"
            ]
        )
        p = torch.randn(24, 8)
        parts = packed.read(p.flatten()).reshape(6, 4, 8)
        assert {tuple(part.flatten().tolist()) for part in parts} == {
            tuple(p[4 * k : 4 * k + 4].flatten().tolist()) for k in range(6)
        }

    def test_of_heads_at_even_distances(self):
        """A parameter in which q, k and v of a head follow each other, of different use."""
        first = MatrixLayout(
            (2, 3, 1, 4), (), View(0, (2, 3, 4), (24, 4, 1), 0)
        )
        second = MatrixLayout(
            (2, 3, 1, 4), (), View(0, (2, 3, 4), (24, 4, 1), 12)
        )
        p = torch.arange(48.0).view(12, 4)
        assert torch.equal(first.read(p.flatten())[1, :, 0], p[6:9])
        assert torch.equal(second.read(p.flatten())[0, :, 0], p[3:6])
        out = torch.empty(48)
        for layout in (first, second):
            out = layout.write(out, layout.read(p.flatten()))
        assert torch.equal(out, p.flatten())

    @pytest.mark.parametrize("longest", [1024, 3])
    def test_writing_inverts_reading(self, longest):
        cases = [
            (Attention(), tokens()),
            (convolutions(), torch.randn(1, 3, 16, 16)),
            (nn.GRU(3, 4), torch.randn(2, 1, 3)),
            (
                [
                    torch.zeros(6, 40, 3, 3),
                    torch.zeros(6),
                    torch.zeros(2, 6, 1),
                ],
                None,
            ),
            (
                [
                    torch.zeros(3, 2, dtype=torch.complex64),
                    torch.zeros(2, 3, 4),
                ],
                None,
            ),
        ]
        for model, example in cases:
            graph = build_graph(model, example)
            for role, spec in zip(
                roles_of(graph), graph.parameters, strict=True
            ):
                self.assert_inverse(
                    layouts_of(role, spec.shape, longest, 8.0), spec.shape
                )

    def assert_inverse(self, layouts, shape):
        p = torch.randn(shape, dtype=torch.float64)
        values = [layout.read(p.flatten()) for layout in layouts]
        assert [v.shape for v in values] == [layout.shape for layout in layouts]
        assert sum(v.numel() for v in values) == prod(shape)
        out = torch.full((prod(shape),), torch.nan, dtype=torch.float64)
        for layout, v in zip(layouts, values, strict=True):
            out = layout.write(out, v)
        assert torch.equal(out, p.flatten())
        pair = torch.stack((p.flatten(), 2 * p.flatten()))
        for layout, v in zip(layouts, values, strict=True):
            assert torch.equal(layout.read(pair), torch.stack((v, 2 * v)))

    def test_reading_takes_other_memory_orders(self):
        layout = the_one(
            found_layouts(convolutions(), torch.randn(1, 3, 16, 16))["3.weight"]
        )
        p = torch.randn(6, 5, 3, 3)
        assert torch.equal(
            layout.read(p.to(memory_format=torch.channels_last).flatten()),
            layout.read(p.flatten()),
        )
