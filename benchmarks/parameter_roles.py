"""Counts how many inferred roles of parameters agree with labels by hand.

    python -m benchmarks.parameter_roles --output results/parameter_roles.json

Roles are inferred from the traced graph, and from parameters alone with and without
their names. Networks are those of torchvision and tiny transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import networks
from benchmarks.graph_building import FAMILIES
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import torchvision_model
from ngopt import build_graph
from ngopt.roles.from_graph import ParameterRole, parameter_roles, roles_of

Labels = tuple[tuple[str, str], ...]
RESNET: Labels = (
    ("fc.weight", "output"),
    ("fc.bias", "bias"),
    (r"(.*\.)?(bn\d|downsample\.1)\.(weight|bias)", "norm"),
    (r"(.*\.)?(conv\d|downsample\.0)\.weight", "matrix"),
)
GPT2: Labels = (
    (r"transformer\.w[tp]e\.weight", "embedding"),
    (r"lm_head\.weight", "output"),
    (r".*\.ln_\w\.(weight|bias)", "norm"),
    (r".*\.c_\w+\.weight", "matrix"),
    (r".*\.c_\w+\.bias", "bias"),
)
LABELS: dict[str, Labels] = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "vgg11_bn": (
        (r"classifier\.6\.weight", "output"),
        (r"classifier\.[03]\.weight", "matrix"),
        (r"features\.(0|4|8|11|15|18|22|25)\.weight", "matrix"),
        (r"features\.(1|5|9|12|16|19|23|26)\.(weight|bias)", "norm"),
        (r".*\.bias", "bias"),
    ),
    "mobilenet_v3_small": (
        (r"classifier\.3\.weight", "output"),
        (r"classifier\.0\.weight|.*\.fc[12]\.weight", "matrix"),
        (r"classifier\.[03]\.bias|.*\.fc[12]\.bias", "bias"),
        (r"features\.\d+(\.block\.\d)?\.0\.weight", "matrix"),
        (r"features\.\d+(\.block\.\d)?\.1\.(weight|bias)", "norm"),
    ),
    "efficientnet_b0": (
        (r"classifier\.1\.weight", "output"),
        (r"classifier\.1\.bias|.*\.fc[12]\.bias", "bias"),
        (r".*\.fc[12]\.weight|features\.\d(\.\d\.block\.\d)?\.0\.weight", "matrix"),
        (r"features\.\d(\.\d\.block\.\d)?\.1\.(weight|bias)", "norm"),
    ),
    "convnext_tiny": (
        (r"classifier\.2\.weight", "output"),
        (r".*\.layer_scale", "other"),
        (
            r"features\.(0\.1|[246]\.0|\d\.\d\.block\.2)\.(weight|bias)|classifier\.0\..*",
            "norm",
        ),
        (r"features\.(0\.0|[246]\.1|\d\.\d\.block\.[035])\.weight", "matrix"),
        (r".*\.bias", "bias"),
    ),
    "vit_b_16": (
        (r"heads\.head\.weight", "output"),
        (r"class_token|encoder\.pos_embedding", "other"),
        (r".*\.(ln|ln_1|ln_2)\.(weight|bias)", "norm"),
        (
            r".*\.(in_proj_weight|out_proj\.weight|mlp\.[03]\.weight)|conv_proj\.weight",
            "matrix",
        ),
        (r".*bias", "bias"),
    ),
    "swin_t": (
        (r"head\.weight", "output"),
        (r".*\.relative_position_bias_table", "other"),
        (r"(.*\.)?norm[12]?\.(weight|bias)|features\.0\.2\.(weight|bias)", "norm"),
        (
            r".*\.(qkv|proj|mlp\.[03]|reduction)\.weight|features\.0\.0\.weight",
            "matrix",
        ),
        (r".*bias", "bias"),
    ),
    "densenet121": (
        (r"classifier\.weight", "output"),
        (r"classifier\.bias", "bias"),
        (r".*norm\d?\.(weight|bias)", "norm"),
        (r".*conv\d?\.weight", "matrix"),
    ),
    "shufflenet_v2_x1_0": (
        (r"fc\.weight", "output"),
        (r"fc\.bias", "bias"),
        (
            r"conv[15]\.0\.weight|.*\.branch1\.[02]\.weight|.*\.branch2\.[035]\.weight",
            "matrix",
        ),
        (r"conv[15]\.1\..*|.*\.branch1\.[13]\..*|.*\.branch2\.[146]\..*", "norm"),
    ),
    "googlenet": (
        (r"fc\.weight|aux[12]\.fc2\.weight", "output"),
        (r"fc\.bias|aux[12]\.fc[12]\.bias", "bias"),
        (r".*\.bn\.(weight|bias)", "norm"),
        (r".*\.(conv|fc1)\.weight", "matrix"),
    ),
    "regnet_y_400mf": (
        (r"fc\.weight", "output"),
        (r"fc\.bias|.*\.se\.fc[12]\.bias", "bias"),
        (r".*\.se\.fc[12]\.weight|.*\.0\.weight", "matrix"),
        (r".*\.1\.(weight|bias)", "norm"),
    ),
    "gpt2": GPT2,
    "gpt2, untied": GPT2,
    "llama": (
        (r"lm_head\.weight", "output"),
        (r"model\.embed_tokens\.weight", "embedding"),
        (r".*norm\.weight", "norm"),
        (r".*_proj\.weight", "matrix"),
    ),
    "bert": (
        (r"classifier\.weight", "output"),
        (r".*_embeddings\.weight", "embedding"),
        (r".*\.LayerNorm\.(weight|bias)", "norm"),
        (r".*\.(query|key|value|dense)\.weight", "matrix"),
        (r".*\.bias", "bias"),
    ),
    "t5": (
        (r"shared\.weight|.*\.relative_attention_bias\.weight", "embedding"),
        (r".*layer_norm\.weight", "norm"),
        (r".*\.(q|k|v|o|wi|wo)\.weight", "matrix"),
    ),
    "oddly named": (
        (r"a", "embedding"),
        (r"b|c\.\d\.g", "other"),
        (r"(c\.\d\.[ad]|d)\.[st]", "norm"),
        (r"c\.\d\.[bcef]\.weight", "matrix"),
        (r"c\.\d\.[bce]\.bias", "bias"),
    ),
}
"""Roles by hand for each network. The first pattern that matches a name applies."""

TRANSFORMERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gpt2": networks.gpt2,
    "gpt2, untied": lambda: networks.gpt2(tied=False),
    "llama": networks.llama,
    "bert": networks.bert,
    "t5": networks.t5,
    "oddly named": networks.oddly_named,
}


def network(name: str) -> tuple[nn.Module, Any]:
    """A network of the table and its inputs."""
    if name in TRANSFORMERS:
        return TRANSFORMERS[name]()
    return torchvision_model(name), torch.randn(2, 3, 224, 224)


def label(network: str, parameter: str) -> str:
    """The role of a parameter by hand."""
    for pattern, role in LABELS[network]:
        if re.fullmatch(pattern, parameter):
            return role
    raise KeyError(f"LABELS: expected a pattern for '{parameter}' of {network}")


def matching(labels: Iterable[str], roles: Iterable[ParameterRole]) -> int:
    """The number of roles that equal their labels."""
    count = 0
    for own, inferred in zip(labels, roles, strict=True):
        count += own == inferred.role
    return count


def measure(name: str) -> Record:
    """The record of one network; `apart`: matrices of the trace, one for each view."""
    model, example = network(name)
    labels = [label(name, parameter) for parameter, _ in model.named_parameters()]
    graph = build_graph(model, example)
    start = perf_counter()
    traced = roles_of(graph)
    seconds = perf_counter() - start
    named = parameter_roles(model.named_parameters())
    unnamed = parameter_roles(model.parameters())
    return {
        "network": name,
        "parameters": len(labels),
        "traced": matching(labels, traced),
        "named": matching(labels, named.values()),
        "unnamed": matching(labels, unnamed.values()),
        "apart": sum(block.view.shape[0] for role in traced for block in role.blocks),
        "roles_ms": 1000 * seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    names = (*FAMILIES, *TRANSFORMERS)
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = list(map(measure, tqdm(options.networks, unit="network")))
    print(table(records))
    write(options.output, records=records)


if __name__ == "__main__":
    main()
