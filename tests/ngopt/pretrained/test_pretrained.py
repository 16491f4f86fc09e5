from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ngopt import NGOptimizer, build_graph, list_pretrained, load_pretrained
from ngopt.metanets import FeedForward
from ngopt.metanets.feedforward import FeedForwardConfig
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.pretrained.learned_optimizer import BASES, LearnedOptimizer
from ngopt.pretrained.tensor_files import digest
from tests.networks import mlp
from tests.ngopt.fake_base import Momentum, MomentumConfig


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    metanet = FeedForward(FeedForwardConfig(hidden=(4,), output_scale=0.5))
    learned = LearnedOptimizer(
        metanet=metanet, recipe={"stages": ["one"]}, table={"fm-16": 0.5}
    )
    path = tmp_path / "mine.safetensors"
    save_pretrained(learned, path)
    return path, learned


@pytest.fixture
def momentum(monkeypatch):
    """A base rule that weights files can name."""
    monkeypatch.setitem(BASES, "momentum", Momentum)
    return Momentum(MomentumConfig(size=0.3, decays=(0.8, 0.5)))


def rewrite(path, tensors=None, rehash=False, **changes):
    with safe_open(path, "pt") as f:
        metadata, kept = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    metadata, kept = {**metadata, **changes}, tensors or kept
    if rehash:
        del metadata["sha256"]
        metadata["sha256"] = digest(metadata, kept)
    save_file(kept, path, metadata)


def assert_same_tensors(found, expected):
    pairs = zip(
        found.state_dict().values(), expected.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_save_and_load(file):
    path, learned = file
    loaded = load_pretrained(path)
    assert loaded.base is None
    assert loaded.metanet.config == learned.metanet.config
    assert weights_hash(loaded) == weights_hash(learned)
    assert_same_tensors(loaded.metanet, learned.metanet)
    assert (loaded.recipe, loaded.table) == (
        {"stages": ["one"]},
        {"fm-16": 0.5},
    )
    assert list(path.parent.iterdir()) == [path]


def test_save_and_load_a_cooldown(file):
    path, learned = file
    cooled = replace(learned, cooldown=Cooldown(1.5, 0.2))
    save_pretrained(cooled, path)
    assert load_pretrained(path).cooldown == Cooldown(1.5, 0.2)
    hashes = {
        weights_hash(one)
        for one in (
            learned,
            cooled,
            replace(learned, cooldown=Cooldown(1.5, 0.3)),
        )
    }
    assert len(hashes) == 3
    rule = load_pretrained(path).bind(build_graph(mlp(2, 3, 1)), 10)
    assert [rule.height(now) for now in (0, 7, 8, 9)] == pytest.approx(
        [1.5, 1.5, 1.5 / 1.1, 0.75 / 1.1]
    )


def test_save_and_load_a_base_rule(file, momentum):
    path, learned = file
    learned = replace(learned, base=momentum, metanet=None)
    save_pretrained(learned, path)
    loaded = load_pretrained(path)
    assert isinstance(loaded.base, Momentum)
    assert loaded.base.config == momentum.config
    assert weights_hash(loaded) == weights_hash(learned)
    assert (loaded.recipe, loaded.table) == (
        {"stages": ["one"]},
        {"fm-16": 0.5},
    )
    assert loaded.metanet is None
    other = replace(learned, base=Momentum(replace(momentum.config, size=0.4)))
    assert weights_hash(other) != weights_hash(learned)
    graph = build_graph(mlp(2, 3, 1))
    rule = loaded.bind(graph, 7, dtype=torch.float64)
    assert (rule.graph, rule.total_steps) == (graph, 7)


def test_a_learned_optimizer_needs_something_to_compute():
    with pytest.raises(ValueError, match="expected a base rule or a metanet"):
        LearnedOptimizer()


@pytest.mark.parametrize("name", ["ff", "lstm", "nfn", "ng-gnn", "ng-t"])
def test_bundled_weights(name):
    assert name in list_pretrained()
    learned = load_pretrained(name)
    assert learned.recipe["stages"]
    assert learned.table
    assert not any(p.requires_grad for p in learned.metanet.parameters())


def test_nfn_is_rounded():
    """The wheel is too large without (`.ci/docs`)."""
    learned = load_pretrained("nfn")
    assert learned.recipe["stages"][-1]["mantissa_bits"] == 19
    for p in learned.metanet.parameters():
        assert (p.view(torch.int32) & 0b1111).eq(0).all()


def test_default_is_bundled():
    model = mlp(2, 3, 1)
    assert NGOptimizer(model.parameters()).defaults["weights"] == weights_hash(
        load_pretrained("default")
    )


def test_hash_sees_values_config_and_not_dtype(file):
    _, learned = file
    metanet, digest = learned.metanet, weights_hash(learned)
    metanet.double()
    assert weights_hash(learned) == digest
    metanet.float()
    other = replace(learned, metanet=metanet.reconfigured(output_scale=0.6))
    assert weights_hash(other) != digest
    assert weights_hash(replace(learned, recipe={"stages": []}, table={})) == digest
    with torch.no_grad():
        next(metanet.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(learned) != digest


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_value(path):
    rewrite(
        path,
        tensors={
            k: v + 1 for k, v in load_pretrained(path).metanet.state_dict().items()
        },
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "expected a complete safetensors file"),
        (lambda p: p.write_bytes(b""), "expected a complete safetensors file"),
        (damage_value, "expected contents with the recorded SHA-256"),
        (
            lambda p: rewrite(p, sha256="0"),
            "expected contents with the recorded SHA-256",
        ),
        (
            lambda p: rewrite(p, format="ngopt-0"),
            "expected format 'ngopt-2'; got 'ngopt-0'",
        ),
        (
            lambda p: rewrite(p, recipe='{"stages": ["two"]}'),
            "expected contents with the recorded SHA-256",
        ),
        (
            lambda p: rewrite(p, table='{"fm-16": 0.9}'),
            "expected contents with the recorded SHA-256",
        ),
        (
            lambda p: rewrite(p, extra="1"),
            "expected contents with the recorded SHA-256",
        ),
        (
            lambda p: rewrite(p, rehash=True, metanet="nfn2"),
            "metanet out of ff, .*got 'nfn2'",
        ),
        (
            lambda p: rewrite(p, rehash=True, base="sgd"),
            "base rule out of .*none; got 'sgd'",
        ),
        (
            lambda p: rewrite(p, rehash=True, config='{"hidden": [4], "dropout": 0}'),
            "dropout",
        ),
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
    assert all(
        torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)
    )


def test_unknown_names_list_what_there_is():
    with pytest.raises(
        ValueError,
        match=r"weights 'adam': expected one of default.*got neither",
    ):
        NGOptimizer(mlp(2, 3, 1).parameters(), weights="adam")
    with pytest.raises(ValueError, match="weights 'no/such/file"):
        load_pretrained("no/such/file.safetensors")
