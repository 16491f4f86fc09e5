from math import prod

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ngopt import NGOptimizer, build_graph
from ngopt.graph.groups_and_blocks import ParameterSpec, View
from ngopt.roles.buckets import Axis, MatrixLayout
from ngopt.roles.from_graph import ParameterRole, roles_of
from ngopt.roles.kronecker_factors import FactorLimits, layouts_of
from ngopt.soap.soap import Soap

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Two heads of four."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
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


def all_layouts(model, example=None, longest=1024, budget=8.0):
    graph = build_graph(model, example)
    for role, spec in zip(roles_of(graph), graph.parameters, strict=True):
        yield spec, layouts_of(role, spec, FactorLimits(longest, budget))


def found_layouts(*arguments, **settings):
    """The only layout of each parameter by name."""
    return {spec.name: x for spec, (x,) in all_layouts(*arguments, **settings)}


def axes(layout):
    return [(axis.name, axis.parts, axis.size) for axis in layout.axes]


def rows(parts, size):
    return "rows", parts, size


def channels(parts, size):
    return "channels", parts, size


def tokens():
    return torch.zeros(1, 5, dtype=torch.long)


class TestLayouts:
    def test_of_a_transformer(self):
        found = found_layouts(Attention(), tokens())
        packed = found["layer.self_attn.in_proj_weight"]
        assert packed.shape == (1, 24, 8, 1)
        assert axes(packed) == [rows(6, 4), channels(1, 8)]  # q, k, v of two heads
        assert axes(found["layer.linear2.weight"]) == [rows(1, 8), channels(1, 12)]
        assert axes(found["out.weight"]) == [rows(1, 11), channels(1, 8)]
        assert found["tokens.weight"].shape == (1, 11, 8, 1)
        assert axes(found["tokens.weight"]) == [channels(1, 8)]
        for name in ("layer.norm1.weight", "layer.linear1.bias"):
            assert axes(found[name]) == []
            assert found[name].shape[:2] == (1, 1)

    def test_of_convolutions(self):
        found = found_layouts(convolutions(), torch.randn(1, 3, 16, 16))
        assert found["0.weight"].shape == (1, 4, 75, 1)
        grouped = found["1.weight"]
        assert grouped.shape == (2, 3, 18, 1)
        assert axes(grouped) == [rows(1, 3), channels(1, 18)]
        depthwise = found["2.weight"]
        assert depthwise.shape == (1, 6, 9, 1)
        assert axes(depthwise) == [rows(1, 6), channels(1, 9)]
        assert found["3.weight"].shape == (1, 5, 54, 1)

    def test_of_gates(self):
        found = found_layouts(nn.GRU(3, 4), torch.randn(2, 1, 3))
        assert axes(found["weight_hh_l0"]) == [rows(3, 4), channels(1, 4)]

    def test_kernel_and_channels_are_apart_beyond_300_columns(self):
        layers = nn.Conv2d(3, 33, 3), nn.Conv2d(33, 34, 3), nn.Conv2d(34, 5, 3)
        found = found_layouts(nn.Sequential(*layers), torch.randn(1, 3, 9, 9))
        assert found["1.weight"].shape == (1, 34, 297, 1)
        assert axes(found["1.weight"])[1:] == [channels(1, 297)]
        assert found["2.weight"].shape == (1, 5, 34, 9)
        expected = [rows(1, 5), ("kernel", 1, 9), channels(1, 34)]
        assert axes(found["2.weight"]) == expected

    def test_inputs_are_cut_and_hidden_neurons_are_not(self):
        model = nn.Sequential(nn.Linear(784, 32), nn.Linear(32, 5))
        found = found_layouts(model)
        # factors and bases of 2 * 56 numbers for each of 32 rows: below 4 a parameter
        assert axes(found["0.weight"]) == [rows(1, 32), channels(14, 56)]
        model = nn.Sequential(nn.Linear(5, 784), nn.Linear(784, 32))
        assert axes(found_layouts(model)["1.weight"]) == [rows(1, 32)]

    def test_budget_and_length(self):
        model = nn.Sequential(nn.Linear(5, 400), nn.Linear(400, 500), nn.Linear(500, 3))
        # 2 * 400^2 numbers for 200,000 elements are 1.6 for each, 2 * 500^2 are 2.5
        expected = {
            8.0: [rows(1, 500), channels(1, 400)],
            2.0: [channels(1, 400)],
            1.0: [rows(1, 500)],  # better in pieces than not at all: in one
        }
        for budget, own in expected.items():
            assert axes(found_layouts(model, budget=budget)["1.weight"]) == own
        assert axes(found_layouts(model, longest=450)["1.weight"]) == [channels(1, 400)]

    def test_rows_in_pieces(self):
        model = nn.Sequential(nn.Linear(5, 1200), nn.Linear(1200, 1200))
        assert axes(found_layouts(model)["1.weight"]) == [rows(2, 600)]

    def test_sides_of_one_have_no_factor(self):
        found = found_layouts(nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)))
        assert axes(found["0.weight"]) == [rows(1, 3)]
        assert axes(found["1.weight"]) == [channels(1, 3)]

    def test_of_nothing_and_of_single_numbers(self):
        found = found_layouts([torch.zeros(3), torch.zeros(())])
        shapes = [layout.shape for layout in found.values()]
        assert shapes == [(1, 1, 3, 1), (1, 1, 1, 1)]
        empty = ParameterRole("empty", "other"), ParameterSpec("empty", (0, 3))
        (layout,) = layouts_of(*empty, FactorLimits(1024, 8.0))
        assert layout.shape == (1, 1, 0, 1)


class TestValues:
    def test_of_a_table_and_of_a_whole_matrix(self):
        p = torch.randn(11, 8)
        table = found_layouts(Attention(), tokens())["tokens.weight"]
        assert table.view is None
        assert table.select(p) is p  # rows of it are tokens

    def test_of_a_transposed_matrix(self):
        """As it lies in memory: without a view, and with the names of axes changed."""
        model = nn.Sequential(Conv1D(5, 7), nn.ReLU(), nn.Linear(5, 2))
        layout = found_layouts(model, torch.zeros(1, 7))["0.weight"]
        assert layout.shape == (1, 7, 5, 1) and layout.view is None
        assert {(a.name, a.size) for a in layout.axes} == {("rows", 7), ("channels", 5)}

    def test_of_a_transposed_convolution(self):
        found = found_layouts(convolutions(), torch.randn(1, 3, 16, 16))
        p = torch.randn(6, 5, 3, 3)
        values = found["3.weight"].select(p)
        assert torch.equal(values.reshape(5, 54), p.transpose(0, 1).reshape(5, 54))
        other = p.to(memory_format=torch.channels_last)
        assert torch.equal(found["3.weight"].select(other), values)

    def test_of_packed_heads(self):
        """Each head's rows, wherever they are in the parameter."""
        packed = found_layouts(Attention(), tokens())["layer.self_attn.in_proj_weight"]
        p = torch.randn(24, 8)
        parts = packed.select(p).reshape(6, 4, 8)
        heads = p.view(6, 4, 8)
        assert sorted(parts.flatten(1).tolist()) == sorted(heads.flatten(1).tolist())

    def test_of_heads_at_even_distances(self):
        """A parameter in which q, k and v of a head follow each other."""
        view = View(0, (2, 3, 4), (24, 4, 1))
        layout = MatrixLayout((2, 3, 4, 1), (), view)
        p = torch.arange(48.0).view(12, 4)
        assert torch.equal(layout.select(p)[1], p[6:9])
        layout.select(p)[1] = 0
        assert not p[6:9].any()  # it is a view

    @pytest.mark.parametrize("longest", [1024, 3])
    def test_every_element_is_in_one_matrix(self, longest):
        tables = [torch.zeros(6, 40, 3, 3), torch.zeros(6), torch.zeros(2, 6, 1)]
        pairs = [torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(2, 3, 4)]
        cases = [
            (Attention(), tokens()),
            (convolutions(), torch.randn(1, 3, 16, 16)),
            (nn.GRU(3, 4), torch.randn(2, 1, 3)),
            (tables, None),
            (pairs, None),
        ]
        for model, example in cases:
            for spec, layouts in all_layouts(model, example, longest):
                count = torch.zeros(spec.shape)
                for layout in layouts:
                    assert layout.select(count).numel() == prod(layout.shape)
                    layout.select(count).add_(1)
                assert (count == 1).all()


G, O, K, I = 2, 6, 3, 4  # noqa: E741
AXES = {
    "rows": Axis("rows", 1, O, I * K),
    "heads": Axis("rows", 3, O // 3, I * K),
    "kernel": Axis("kernel", 1, K, O * I),
    "channels": Axis("channels", 1, I, O * K),
    "cut channels": Axis("channels", 2, I // 2, O * K),
}


class TestAxes:
    """Against einsum over all indices; values are (groups, rows, channels, kernel)."""

    @pytest.fixture(params=AXES)
    def axis(self, request):
        return AXES[request.param]

    def values(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(G, O, I, K, generator=generator, dtype=torch.float64)

    def basis(self, axis):
        generator = torch.Generator().manual_seed(1)
        shape = G * axis.parts, axis.size, axis.size
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(x)[0]

    def apart(self, axis, x):
        """(groups, parts, size, rest)."""
        if axis.name == "rows":
            return x.reshape(G, axis.parts, axis.size, I * K)
        if axis.name == "kernel":
            return x.permute(0, 3, 1, 2).reshape(G, 1, K, O * I)
        split = x.reshape(G, O, axis.parts, axis.size, K)
        return split.permute(0, 2, 3, 1, 4).reshape(G, axis.parts, axis.size, O * K)

    def test_factors(self, axis):
        x = self.apart(axis, self.values())
        expected = torch.einsum("gpir,gpjr->gpij", x, x).flatten(0, 1)
        x = axis.unfold(self.values())
        torch.testing.assert_close(x @ x.mT, expected)

    def test_rotations(self, axis):
        q = self.basis(axis)
        x = self.apart(axis, self.values())
        own = q.view(G, -1, axis.size, axis.size)
        expected = torch.einsum("gpij,gpir->gpjr", own, x)
        found = axis.rotate(self.values(), q)
        assert found.shape == (G, O, I, K)
        torch.testing.assert_close(self.apart(axis, found), expected)
        torch.testing.assert_close(axis.rotate(found, q, back=True), self.values())

    @pytest.mark.parametrize("name", ["rows", "channels"])
    def test_without_kernel_and_parts(self, name):
        """Values are (groups, rows, channels)."""
        x = self.values()[..., 0]
        axis = Axis(name, 1, *((O, I) if name == "rows" else (I, O)))
        q = self.basis(axis)
        formula = "gij,gic->gjc" if name == "rows" else "gij,goi->goj"
        expected = torch.einsum(formula, q, x)
        torch.testing.assert_close(axis.rotate(x, q), expected)
        torch.testing.assert_close(axis.rotate(expected, q, back=True), x)
        assert axis.unfold(x).shape == (G, axis.size, axis.rest)


class TestRows:
    """Axes are divided where a step would cost too much on a CPU."""

    def model(self, width=300):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(200, width), nn.Tanh(), nn.Linear(width, 5))

    def trained(self, model, opt, steps):
        for step in range(steps):
            inputs = torch.randn(16, 200, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            model(inputs).square().mean().backward()
            opt.step()

    def state_shapes(self, opt):
        return [x.shape for x in opt.state[opt.param_groups[0]["params"][0]].values()]

    def test_of_large_networks_on_a_cpu(self):
        graph = build_graph(self.model(600))
        layouts = Soap().bind(graph, device=CPU).layouts
        assert axes(layouts[0][0]) == [rows(8, 75), channels(2, 100)]
        assert axes(layouts[2][0]) == [rows(1, 5)]
        layouts = Soap().bind(graph, device=torch.device("meta")).layouts
        assert axes(layouts[0][0]) == [rows(1, 600), channels(1, 200)]
        small = build_graph(self.model(250))
        assert axes(Soap().bind(small, device=CPU).layouts[0][0]) == [
            rows(1, 250),
            channels(1, 200),
        ]

    def test_kernels_are_divided_with_their_channels(self):
        graph = build_graph(nn.Sequential(nn.Conv2d(4, 256, 3), nn.Conv2d(256, 128, 3)))
        (layout,) = Soap().bind(graph, device=CPU).layouts[2]
        assert layout.shape == (1, 128, 2304, 1)
        assert axes(layout) == [rows(1, 128), channels(32, 72)]  # of 8 channels each

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((509, 262), [rows(1, 509), channels(2, 131)]),
            ((257, 5), [rows(1, 257), channels(1, 5)]),
            ((50257, 768), [channels(8, 96)]),
            ((50304, 768), [rows(384, 131), channels(8, 96)]),
        ],
    )
    def test_prime_numbers_stay_whole(self, shape, expected):
        graph = build_graph(nn.Linear(*reversed(shape), device="meta"))
        found = axes(Soap().bind(graph, device=CPU).layouts[0][0])
        assert found == expected

    @pytest.mark.parametrize(
        ("device", "expected"), [(None, channels(1, 768)), (CPU, channels(8, 96))]
    )
    def test_tables_of_few_tokens_keep_their_factor(self, device, expected):
        graph = build_graph(nn.Embedding(60, 768, device="meta"), torch.arange(3))
        assert axes(Soap().bind(graph, device=device).layouts[0][0]) == [expected]

    def test_the_limit_is_set_before_the_first_step(self):
        model = self.model()
        opt = NGOptimizer([{"params": model[0].parameters()}])
        opt.add_param_group({"params": model[2].parameters(), "factor_rows": 64})
        self.trained(model, opt, 2)
        assert opt.param_groups[0]["factor_rows"] == 64
        opt.param_groups[0]["factor_rows"] = opt.param_groups[1]["factor_rows"] = 128
        with pytest.raises(ValueError, match="factor_rows: expected 64, as in the st"):
            self.trained(model, opt, 1)

    @pytest.mark.parametrize("limit", [3072, 150])
    def test_a_loaded_state_keeps_its_axes(self, limit):
        """It may come from another device."""
        models = self.model(600), self.model(600)
        group = {"params": models[0].named_parameters(), "factor_rows": limit}
        opt = NGOptimizer([group])
        self.trained(models[0], opt, 6)
        models[1].load_state_dict(models[0].state_dict())
        other = NGOptimizer(models[1].named_parameters())
        self.trained(models[1], other, 1)
        assert self.state_shapes(other) != self.state_shapes(opt)
        models[1].load_state_dict(models[0].state_dict())
        other.load_state_dict(opt.state_dict())
        for model, optimizer in zip(models, (opt, other), strict=True):
            self.trained(model, optimizer, 5)
        assert self.state_shapes(other) == self.state_shapes(opt)
        for x, y in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(x, y)
