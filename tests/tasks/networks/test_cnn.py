import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.networks.architectures import architecture_of
from tasks.networks.cnn import CNN, cnn_description, shortcut

WILD = cnn_description(
    channels=[1, 3, 7, 5],
    kernels=[5, 3, 7],
    strides=[2, 2, 1],
    activations=["tanh", "leaky_relu", "silu"],
    skips=[None, 0, 0],
)


def module_of(description):
    return CNN(**{key: value for key, value in description.items() if key != "kind"})


def test_the_small_cnn_is_a_sequence_of_torch_layers_with_4970_parameters():
    torch.manual_seed(0)
    sizes = [1, 16, 16, 16], [3, 3, 3], [2, 2, 2]
    description = cnn_description(*sizes, ["relu"] * 3, paddings=[0, 0, 0])
    model = module_of(description)
    assert sum(p.numel() for p in model.parameters()) == 4970
    one, two, three = model.layers
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc]
    sequence = nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), three, nn.ReLU(), *pooled)
    images = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(model(images), sequence(images))


def test_skips_add_the_first_channels_before_the_activation():
    torch.manual_seed(0)
    model = module_of(WILD).double()
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    first = model.layers[0](images).tanh()  # 16 pixels a side
    second = model.layers[1](first)  # 8
    second[:, :3] += first[:, :, ::2, ::2]
    third = model.layers[2](F.leaky_relu(second))
    third[:, :3] += first[:, :, ::2, ::2]
    torch.testing.assert_close(model(images), model.fc(F.silu(third).mean((2, 3))))


def test_a_skip_from_more_channels_leaves_the_others_out():
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(shortcut(x, 1, 3), x[:, :3])
    expected = torch.cat([x[..., ::2, ::2], torch.zeros(2, 1, 2, 2)], 1)
    assert torch.equal(shortcut(x, 2, 6), expected)


def test_skips_in_the_graph_connect_the_common_neurons():
    graph = architecture_of(WILD).graph
    names = [group.name for group in graph.groups]
    sizes = {
        (names[block.source], names[block.target]): block.shape[0]
        for block in graph.blocks
        if block.kind == "residual"
    }
    assert sizes == {("layers.0", "layers.1"): 3, ("layers.0", "layers.2"): 3}
    activations = [group.activation for group in graph.groups]
    assert activations == [None, "tanh", "leaky_relu", "silu", None]


def test_one_dimension_reads_the_pixels_row_after_row():
    torch.manual_seed(0)
    model = module_of(cnn_description([3, 4], [5], [4], ["gelu"], dimensions=1))
    images = torch.randn(2, 3, 32, 32)
    weight, bias = model.layers[0].weight, model.layers[0].bias
    rows = torch.cat([images[:, :, row] for row in range(32)], 2)
    maps = F.gelu(F.conv1d(rows, weight, bias, stride=4, padding=2))
    torch.testing.assert_close(model(images), model.fc(maps.mean(2)))


def test_a_batch_norm_has_no_buffers_and_always_uses_statistics_of_the_batch():
    torch.manual_seed(0)
    sizes = [1, 4, 4], [3, 3], [2, 2]
    model = module_of(cnn_description(*sizes, ["relu"] * 2, norm="batch"))
    assert not list(model.buffers())
    images = torch.randn(6, 1, 32, 32)
    assert torch.equal(model(images), model.eval()(images))
    sums = model.layers[0](images)
    variance, mean = torch.var_mean(sums, (0, 2, 3), keepdim=True, correction=0)
    normed = model.group_activations(images)[2]
    torch.testing.assert_close(normed, F.relu((sums - mean) / (variance + 1e-5).sqrt()))


def test_dropout_is_for_training_alone():
    description = {key: value for key, value in WILD.items() if key != "kind"}
    model = CNN(dropout=0.5, **description)
    without = CNN(**description)
    without.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert not torch.allclose(model(images), without(images))
    assert torch.equal(model.eval()(images), without(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": [3]}, "kernels: expected 3 entries; got 1"),
        (
            {"activations": ["sine"] * 3},
            "activation: expected one of relu,.*got 'sine'",
        ),
        (
            {"skips": [None, 1, None]},
            "skips: expected None or an earlier layer for layer 1; got 1",
        ),
        ({"norm": "layer"}, "norm: expected one of batch, group, or none; got 'layer'"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=f"architecture: {message}"):
        module_of({**WILD, **change})
