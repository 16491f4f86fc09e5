"""Small files of published formats, as their authors' programs write them."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

WILD_CONFIG = {
    "n_layers": 3,
    "n_classes": 10,
    "channels": [1, 4, 6, 5],
    "kernel_size": [3, 5, 3],
    "stride": [1, 1, 1],
    "padding": [1, 2, 1],
    "residual": [-1, -1, 0],
    "activation": ["gelu", "sigmoid", "leaky_relu"],
}


def wild_model(seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    config = WILD_CONFIG
    sizes = zip(pairwise(config["channels"]), config["kernel_size"], strict=True)
    layers = nn.ModuleList(nn.Conv2d(*ab, k, padding=k // 2) for ab, k in sizes)
    return nn.ModuleDict({"layers": layers, "fc": nn.Linear(5, 10)})


def write_wild_park(folder: Path) -> Path:
    """Three networks in each split; the split file."""
    splits = {}
    for place, split in enumerate(("train", "val", "test")):
        paths = [f"zoo/run_{place}/checkpoint_{k}/checkpoint.pt" for k in range(3)]
        for number, path in enumerate(paths):
            (folder / path).parent.mkdir(parents=True)
            values = {"config": WILD_CONFIG, "iteration": number}
            state = wild_model(number).state_dict()
            torch.save({**values, "model": state}, folder / path)
        splits[split] = {"path": paths, "score": [0.1, 0.2, 0.3], "step": [0, 1, 2]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder / "splits.json"


def write_nfn(folder: Path, count: int, widths: Sequence[int]) -> None:
    """So many SIRENs of classes 0 to 9, in turn."""
    for number in range(count):
        torch.manual_seed(number)
        layers = [nn.Linear(*fans) for fans in pairwise(widths)]
        values = {}
        for place, layer in enumerate(layers):
            name = f"net.{place}" + (".linear" if place < len(layers) - 1 else "")
            values[f"{name}.weight"] = layer.weight.detach()
            values[f"{name}.bias"] = layer.bias.detach()
        of_class = folder / f"randinit_test_{number % 10}s"
        of_class.mkdir(parents=True, exist_ok=True)
        torch.save(values, of_class / f"net{number}.pth")


def refused(read, source: Path, message: str, split: str = "test") -> None:
    """Reading a split raises an error with such a message."""
    with pytest.raises(ValueError, match=message):
        list(read(source, split))
