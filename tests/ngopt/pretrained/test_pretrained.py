from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ngopt import NGOptimizer, build_graph, list_pretrained, load_pretrained
from ngopt.metanets import FeedForward
from ngopt.metanets.feedforward import FeedForwardConfig
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.pretrained.tensor_files import digest
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from tests.networks import mlp
from tests.ngopt.fake_base import Momentum


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    metanet = FeedForward(FeedForwardConfig(hidden=(4,), output_scale=0.5))
    table = {"fm-16": 0.5}
    learned = LearnedOptimizer(metanet, recipe={"stages": ["one"]}, table=table)
    path = tmp_path / "mine.safetensors"
    save_pretrained(learned, path)
    return path, learned


def rewrite(path, tensors=None, rehash=False, **changes):
    """Changes tensors and metadata of a file. rehash: also its SHA-256."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
    tensors = tensors or load_file(path)
    if rehash:
        del metadata["sha256"]
        metadata["sha256"] = digest(metadata, tensors)
    save_file(tensors, path, metadata)


def test_save_and_load(file):
    path, learned = file
    loaded = load_pretrained(path)
    assert loaded.metanet.config == learned.metanet.config
    assert weights_hash(loaded) == weights_hash(learned)
    pairs = zip(loaded.metanet.parameters(), learned.metanet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert loaded.recipe == {"stages": ["one"]}
    assert loaded.table == {"fm-16": 0.5}
    assert list(path.parent.iterdir()) == [path]


def test_save_and_load_a_cooldown(file):
    path, learned = file
    cooled = replace(learned, cooldown=Cooldown(1.5, 0.2))
    save_pretrained(cooled, path)
    assert load_pretrained(path).cooldown == Cooldown(1.5, 0.2)
    other = replace(learned, cooldown=Cooldown(1.5, 0.3))
    assert len({weights_hash(x) for x in (learned, cooled, other)}) == 3
    rule = load_pretrained(path).bind(build_graph(mlp(2, 3, 1)), 10)
    heights = [rule.cooldown.height(now, rule.total_steps) for now in (0, 7, 8, 9)]
    assert heights == pytest.approx([1.5, 1.5, 1.5 / 1.1, 0.75 / 1.1])


def test_save_and_load_constants_of_the_default(file):
    path, _ = file
    rule = Soap(SoapConfig(beta2=0.96))
    save_pretrained(rule, path)
    loaded = load_pretrained(path)
    assert loaded.config == rule.config and loaded.multiplier is None
    assert weights_hash(loaded) == weights_hash(rule) != weights_hash(Soap())


def test_files_store_no_rule_of_a_user(tmp_path):
    path = tmp_path / "rule.safetensors"
    with pytest.raises(ValueError, match="expected a Soap, a .*; got Momentum"):
        save_pretrained(Momentum(), path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["ff", "lstm", "nfn", "ng-gnn", "ng-t"])
def test_bundled_metanets_need_no_gradients(name):
    assert name in list_pretrained()
    assert not any(p.requires_grad for p in load_pretrained(name).metanet.parameters())


def test_nfn_is_rounded():
    """The wheel is too large without (`.ci/docs`)."""
    learned = load_pretrained("nfn")
    assert learned.recipe["stages"][-1]["mantissa_bits"] == 18
    for p in learned.metanet.parameters():
        assert (p.view(torch.int32) & 0b11111).eq(0).all()


def test_the_default_is_soap_with_its_constants():
    assert "default" in list_pretrained()
    opt = NGOptimizer(mlp(2, 3, 1).parameters())
    for rule in (load_pretrained(), load_pretrained("soap"), opt.rule):
        assert (rule.config, rule.multiplier) == (SoapConfig(), None)


def test_factors_apply_to_the_constants_of_this_version(tmp_path):
    rule = load_pretrained("learned-step")
    assert rule.config == SoapConfig()
    path = tmp_path / "factors.safetensors"
    save_pretrained(rule, path)
    loaded = load_pretrained(path)
    assert weights_hash(loaded) == weights_hash(rule)
    assert loaded.multiplier.recipe == rule.multiplier.recipe
    with safe_open(path, "pt") as file:
        assert file.metadata()["base_config"] == "{}"


def test_factors_that_were_fitted_to_other_constants_warn(tmp_path):
    older = replace(load_pretrained("learned-step"), config=SoapConfig(beta2=0.96))
    path = tmp_path / "factors.safetensors"
    save_pretrained(older, path)
    with pytest.warns(UserWarning, match="fitted to an older version of the rule"):
        loaded = load_pretrained(path)
    assert loaded.config == SoapConfig()


def test_hash_depends_on_values_and_config_alone(file):
    _, learned = file
    metanet = learned.metanet
    expected = weights_hash(learned)
    metanet.double()
    assert weights_hash(learned) == expected
    metanet.float()
    other = replace(learned, metanet=metanet.reconfigured(output_scale=0.6))
    assert weights_hash(other) != expected
    assert weights_hash(replace(learned, recipe={"stages": []}, table={})) == expected
    with torch.no_grad():
        next(metanet.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(learned) != expected


def damage_value(path):
    tensors = load_pretrained(path).metanet.state_dict()
    rewrite(path, tensors={key: value + 1 for key, value in tensors.items()})


def changed(**changes):
    return lambda path: rewrite(path, **changes)


INCOMPLETE = "expected a complete safetensors file"
OTHER = "expected contents with the recorded SHA-256"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), INCOMPLETE),
        (lambda path: path.write_bytes(b""), INCOMPLETE),
        (damage_value, OTHER),
        (changed(sha256="0"), OTHER),
        (changed(recipe='{"stages": ["two"]}'), OTHER),
        (changed(table='{"fm-16": 0.9}'), OTHER),
        (changed(extra="1"), OTHER),
        (changed(format="ngopt-0"), "expected format 'ngopt-2'; got 'ngopt-0'"),
        (changed(rehash=True, metanet="nfn2"), "metanet 'nfn2': expected one of ff, "),
        (
            changed(rehash=True, base="sgd", metanet="none"),
            "expected rule 'soap'; got 'sgd'",
        ),
        (
            changed(rehash=True, base="soap"),
            "no base rule beside a metanet; got 'soap'",
        ),
        (changed(rehash=True, config='{"hidden": [4], "dropout": 0}'), "dropout"),
    ],
)
def test_damaged_files_name_the_file(file, damage, message):
    path, _ = file
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        NGOptimizer(mlp(2, 3, 1).parameters(), rule=path)
    assert str(path) in str(caught.value)


def test_unknown_names_are_errors_with_the_known_names():
    message = "rule 'adam': expected one of default.*got neither"
    with pytest.raises(ValueError, match=message):
        NGOptimizer(mlp(2, 3, 1).parameters(), rule="adam")
    with pytest.raises(ValueError, match="rule 'no/such/file"):
        load_pretrained("no/such/file.safetensors")
