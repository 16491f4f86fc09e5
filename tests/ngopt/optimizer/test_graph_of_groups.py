import pytest
import torchvision
from torch import nn

from ngopt.graph.connectivity import unconnected
from ngopt.graph.parameter_order import merged_order
from ngopt.optimizer.param_groups import group_tensors
from tests.ngopt.optimizer.test_graph_source import (
    Parallel,
    expected_graph,
    forward_backward,
    optimizer,
)


def decay_groups(model):
    """Named groups as transformers' Trainer makes them: weights of layers, then biases
    and norms."""
    kinds = nn.LayerNorm | nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    of_norms = {p for norm in norms for p in norm.parameters()}
    decay, rest = [], []
    for name, p in model.named_parameters():
        (rest if "bias" in name or p in of_norms else decay).append((name, p))
    return [{"params": decay, "weight_decay": 1.0}, {"params": rest}]


def decay_groups_without_names(model):
    return [{"params": [p for _, p in g["params"]]} for g in decay_groups(model)]


class TestGroups:
    """Groups that split parameters by weight decay give the graph of one group."""

    @pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "vit"])
    def test_named(self, name):
        model = {
            "mlp": lambda: nn.Sequential(
                nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(),
                nn.Linear(5, 3), nn.LayerNorm(3),
            ),
            "cnn": lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4),
                nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6),
                nn.Flatten(), nn.Linear(6, 3),
            ),
            "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
            "vit": lambda: torchvision.models.VisionTransformer(
                image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8,
                mlp_dim=12,
            ),
        }[name]()  # fmt: skip
        groups = decay_groups(model)
        assert all(group["params"] for group in groups)
        split = optimizer(groups)
        assert split.graph == optimizer(model.named_parameters()).graph
        params = group_tensors(split.param_groups)
        names = {p: name for name, p in model.named_parameters()}
        specs = split._binding.parameters(split).graph.parameters
        assert [names[p] for p in params] == [spec.name for spec in specs]

    @pytest.mark.parametrize("name", ["GPT2", "Bert", "ViT"])
    def test_named_groups_of_transformers(self, name):
        transformers = pytest.importorskip("transformers")
        encoder = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        extra = {
            "GPT2": {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16},
            "Bert": encoder,
            "ViT": encoder,
        }[name]
        config = getattr(transformers, f"{name}Config")(**extra)
        model = getattr(transformers, f"{name}Model")(config)
        names = [name for name, _ in model.named_parameters()]
        groups = decay_groups(model)
        assert merged_order([[n for n, _ in g["params"]] for g in groups]) == names
        assert optimizer(groups).graph == optimizer(model.named_parameters()).graph

    def test_vectors_in_a_group_without_names_belong_to_no_layer(self):
        layers = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3)
        model = nn.Sequential(*layers)
        opt = optimizer(decay_groups_without_names(model))
        graph = opt._binding.parameters(opt).graph
        names = [f"parameter {i}" for i in range(6)]
        assert unconnected(graph) == names[3:]
        assert [spec.name for spec in graph.parameters[:3]] == names[:3]

    def test_with_model(self):
        model = Parallel()
        opt = optimizer(decay_groups_without_names(model), model=model)
        forward_backward(model)
        assert opt.graph == expected_graph(model)

    def test_order_by_hand(self):
        weights = ["conv1.weight", "fc.0.weight", "out.weight"]
        others = "conv1.bias bn1.weight bn1.bias scale fc.1.weight out.bias".split()
        expected = "scale conv1.weight conv1.bias bn1.weight bn1.bias fc.0.weight"
        expected += " fc.1.weight out.weight out.bias"
        assert merged_order([weights, others]) == expected.split()
        # they contradict each other
        lists = [["b.weight", "a.weight"], ["a.bias", "b.bias"]]
        assert sorted(merged_order(lists)) == sorted(lists[0] + lists[1])
