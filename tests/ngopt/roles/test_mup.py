"""Groups with the learning rates of muP."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from ngopt import build_graph, mup_groups
from ngopt.roles import mup


def rates(model, example_input, **settings):
    """Learning rate and weight decay by name."""
    found = {}
    for group in mup_groups(model, example_input, lr=1.0, **settings):
        for name in group["names"]:
            found[name] = group["lr"], group["weight_decay"]
    return found


def cnn(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


class Tied(nn.Module):
    def __init__(self, is_tied):
        super().__init__()
        self.a = nn.Embedding(11, 32)
        self.b = nn.Linear(32, 64)
        self.c = nn.Linear(64, 32)
        self.d = nn.Linear(32, 11, bias=False)
        if is_tied:
            self.d.weight = self.a.weight

    def forward(self, codes):
        x = self.a(codes)
        return self.d(x + self.c(self.b(x).relu()))


def test_matrices_that_read_hidden_neurons_have_rates_by_width():
    found = rates(cnn(32), torch.randn(2, 3, 8, 8), weight_decay=0.1)
    assert found["3.weight"] == pytest.approx((256 / (9 * 32), 0.1 * 9 * 32 / 256))
    assert found["7.weight"] == pytest.approx((256 / 64, 0.1 * 64 / 256))
    others = {found[name] for name in found.keys() - {"3.weight", "7.weight"}}
    assert others == {(1.0, 0.1)}


def test_the_reference_width_has_one_rate():
    found = rates(cnn(16), torch.randn(2, 3, 8, 8), reference_width=32)
    assert found["7.weight"][0] == 1
    assert found["3.weight"][0] == 32 / (9 * 16)


def test_a_tied_table_is_an_output_matrix():
    codes = torch.randint(11, (2, 5))
    assert rates(Tied(is_tied=True), codes)["a.weight"][0] == 8
    untied = rates(Tied(is_tied=False), codes)
    assert untied["a.weight"][0] == 1
    assert untied["d.weight"][0] == 8
    assert untied["c.weight"][0] == 4


class Recurrent(nn.Module):
    """Returns its state, too."""

    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(8, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        outputs, state = self.cells(x)
        return self.head(outputs), state


class Skip(nn.Module):
    """The second layer reads the inputs again."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 64)
        self.b = nn.Linear(64 + 8, 64)

    def forward(self, x):
        return self.b(torch.cat([self.a(x).relu(), x], 1))


def test_neurons_that_are_also_outputs_are_hidden():
    found = rates(Recurrent(), torch.randn(2, 6, 8))
    assert found["cells.weight_ih_l0"][0] == 1
    assert found["cells.weight_hh_l0"][0] == 4
    assert found["head.weight"][0] == 4


def test_inputs_do_not_count():
    assert rates(Skip(), torch.randn(2, 8))["b.weight"][0] == 4


def test_depthwise_kernels_have_one_rate_and_narrow_matrices_a_limit():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 32, 1),
    )
    found = rates(model, torch.randn(2, 3, 8, 8))
    assert found["2.weight"][0] == 1
    assert found["4.weight"][0] == found["6.weight"][0] == 8


def test_cross_attention_reads_hidden_neurons():
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 64, "d_ff": 96, "num_heads": 4, "num_layers": 1}
    config = transformers.T5Config(vocab_size=31, d_kv=16, **sizes)
    codes = torch.randint(31, (2, 5))
    inputs = {"input_ids": codes, "decoder_input_ids": codes}
    found = rates(transformers.T5ForConditionalGeneration(config), inputs)
    attention = [name for name in found if "Attention." in name and "bias" not in name]
    assert {found[name][0] for name in attention} == {4}


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1}, {"lr": "1e-3"}, {"lr": 1, "reference_width": 0}, {"lr": float("nan")}],
)
def test_bad_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="mup_groups: .*: expected a number >"):
        mup_groups(cnn(8), torch.randn(2, 3, 8, 8), **settings)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="expected a torch.nn.Module; got str"):
        mup_groups("resnet", None, lr=1)


class Unused(nn.Module):
    """The network does not use one of its matrices."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)
        self.b = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return self.a(x)


def test_parameters_that_are_not_connected_are_named():
    with pytest.warns(UserWarning, match="^mup_groups: 1 parameters .* 'b.weight'"):
        mup_groups(Unused(), torch.randn(2, 8), lr=1)


def test_every_parameter_is_in_one_group():
    model = Tied(is_tied=True)
    groups = mup_groups(model, torch.randint(11, (2, 5)), lr=1e-3)
    grouped = [p for group in groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    names = [name for group in groups for name in group["names"]]
    assert (
        dict(zip(names, grouped, strict=True)).keys()
        == dict(model.named_parameters()).keys()
    )
    AdamW(groups).step()


def test_a_network_that_cannot_be_traced_is_refused(monkeypatch):
    inferred = build_graph(list(cnn(8).named_parameters()))
    monkeypatch.setattr(mup, "build_graph", lambda *_: inferred)
    with pytest.raises(ValueError, match=r"unknown connections, such as '0.weight'"):
        mup_groups(cnn(8), torch.randn(2, 3, 8, 8), lr=1e-3)


def change_of_outputs(width, is_mup, seed):
    """Norm of the change that five steps of AdamW make."""
    torch.manual_seed(seed)
    hidden = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), *hidden)
    nn.init.zeros_(model[-1].weight)
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    groups = mup_groups(model, x, lr=1e-3) if is_mup else model.parameters()
    optimizer = AdamW(groups, lr=1e-3)
    first = model(x)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (model(x) - first).norm().item()


@pytest.mark.parametrize(("is_mup", "low", "high"), [(True, 0.7, 1.5), (False, 8, 99)])
def test_outputs_change_by_the_same_at_every_width(is_mup, low, high):
    """Yang et al. 2022, section D.1, from width 128 to 1,024."""
    changes = []
    for width in (128, 1024):
        changes.append(sum(change_of_outputs(width, is_mup, seed) for seed in range(3)))
    assert low < changes[1] / changes[0] < high
