import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ngopt import NGOptimizer, list_pretrained, load_pretrained
from ngopt.models import FeedForward
from ngopt.models.feedforward import FeedForwardConfig
from ngopt.pretrained import save_pretrained, weights_hash
from tests.networks import mlp


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    metanet = FeedForward(FeedForwardConfig(hidden=(4,), output_scale=0.5))
    path = tmp_path / "mine.safetensors"
    save_pretrained(metanet, path, recipe={"stages": ["one"]}, table={"fm-16": 0.5})
    return path, metanet


def rewrite(path, tensors=None, **changes):
    with safe_open(path, "pt") as f:
        metadata, kept = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    save_file(tensors or kept, path, {**metadata, **changes})


def test_save_and_load(file):
    path, metanet = file
    loaded = load_pretrained(path)
    assert loaded.config == metanet.config
    assert weights_hash(loaded) == weights_hash(metanet)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), metanet.state_dict().values(), strict=True)
    )
    assert (loaded.recipe, loaded.table) == ({"stages": ["one"]}, {"fm-16": 0.5})
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["ff", "ng-gnn"])
def test_bundled_weights(name):
    assert name in list_pretrained()
    metanet = load_pretrained(name)
    assert metanet.recipe["stages"]
    assert metanet.table
    assert not any(p.requires_grad for p in metanet.parameters())


def test_default_is_bundled():
    model = mlp(2, 3, 1)
    assert NGOptimizer(model.parameters()).defaults["weights"] == weights_hash(load_pretrained("default"))


def test_hash_sees_values_config_and_not_dtype(file):
    _, metanet = file
    digest = weights_hash(metanet)
    assert weights_hash(metanet.double()) == digest
    metanet.float()
    other = FeedForward(FeedForwardConfig(hidden=(4,), output_scale=0.6))
    other.load_state_dict(metanet.state_dict())
    assert weights_hash(other) != digest
    with torch.no_grad():
        next(metanet.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(metanet) != digest


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_value(path):
    rewrite(path, tensors={k: v + 1 for k, v in load_pretrained(path).state_dict().items()})


def damage_config(path):
    config = {"hidden": [4], "output_scale": 0.5, "magnitude_scale": 0.001, "nominal_step": 0.001, "dropout": 0.1}
    metanet = load_pretrained(path)
    metanet.config = FeedForwardConfig()
    import ngopt.pretrained as pretrained

    text = json.dumps(config)
    rewrite(path, config=text, sha256=pretrained._hash(metanet.state_dict(), text))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "expected a complete safetensors file"),
        (lambda p: p.write_bytes(b""), "expected a complete safetensors file"),
        (damage_value, "do not have the SHA-256"),
        (lambda p: rewrite(p, sha256="0"), "do not have the SHA-256"),
        (lambda p: rewrite(p, format="ngopt-0"), "expected format 'ngopt-1'; got 'ngopt-0'"),
        (lambda p: rewrite(p, metanet="nfn2"), "got 'nfn2'"),
        (damage_config, "differs in dropout"),
    ],
)
def test_damaged_files_name_the_file(file, damage, message):
    path, _ = file
    damage(path)
    model = mlp(2, 3, 1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message) as caught:
        NGOptimizer(model.parameters(), weights=path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=r"weights 'adam': expected one of default.*got neither"):
        NGOptimizer(mlp(2, 3, 1).parameters(), weights="adam")
    with pytest.raises(ValueError, match="weights 'no/such/file"):
        load_pretrained("no/such/file.safetensors")
