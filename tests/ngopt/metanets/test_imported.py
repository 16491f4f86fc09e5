import pytest
import torch

from ngopt import NGOptimizer, load_pretrained
from ngopt.metanets import METANETS, FeedForward
from ngopt.metanets.imported import find_metanet, imported_metanets
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.interpreters import printed

OWN = "tests.user_classes:Halved"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    cls = find_metanet(OWN, METANETS, may_import=True)
    path = tmp_path / "own.safetensors"
    save_pretrained(LearnedOptimizer(cls(cls.Config())), path)
    return path


def test_weights_of_a_user_metanet(weights):
    from tests.user_classes import Halved

    metanet = load_pretrained(weights).metanet
    assert type(metanet) is Halved  # and not the "ff" whose name it inherits
    same = FeedForward(metanet.config)
    same.load_state_dict(metanet.state_dict())
    features = torch.randn(5, 14)
    halved = metanet.updates(features, None)
    assert torch.equal(halved, same.updates(features, None) / 2)
    hashes = {weights_hash(LearnedOptimizer(one)) for one in (metanet, same)}
    assert len(hashes) == 2
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    NGOptimizer([p], rule=weights).step()
    assert OWN in imported_metanets()


def test_reading_a_file_imports_nothing(weights):
    code = f"""
import sys
from ngopt import load_pretrained
try:
    load_pretrained({str(weights)!r})
except ValueError as error:
    print(error)
assert "tests.user_classes" not in sys.modules
import tests.user_classes
print(type(load_pretrained({str(weights)!r}).metanet).__name__)
"""
    error, name = printed(code).splitlines()
    expected = f"weights file '{weights}': metanet '{OWN}': expected module "
    assert error.startswith(f"{expected}'tests.user_classes' to be imported")
    assert f"import it first; on the command line pass --metanet {OWN}" in error
    assert name == "Halved"


@pytest.mark.parametrize(
    "name, message",
    [
        ("gnn", "metanet 'gnn': expected one of ff, lstm, .*, or module:Class"),
        ("tests.none:Own", "cannot import 'tests.none': No module named"),
        (
            "tests.user_classes:Other",
            "expected 'Other' in module 'tests.user_classes'; got none",
        ),
        (
            "tests.user_classes:NoModel",
            "a subclass of ngopt.metanets.metanet.Metanet; got <class",
        ),
        (":Own", "metanet ':Own': expected one of"),
    ],
)
def test_names_of_no_metanet(name, message):
    with pytest.raises(ValueError, match=message):
        find_metanet(name, METANETS, may_import=True)


def test_registered_metanets_have_their_names():
    assert find_metanet("ng-gnn", METANETS) is METANETS["ng-gnn"]
