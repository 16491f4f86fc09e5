import pytest
import torch

from benchmarks import small_networks
from benchmarks.small_networks import PROBLEMS
from tests.meta_train.small import available


@pytest.mark.parametrize("name", PROBLEMS)
def test_networks_make_a_step(name):
    if "resnet" in name:
        pytest.importorskip("torchvision")
    problem = available(name)
    problem.loss(problem.init(0), problem.batch(0, 0)).backward()


def test_classes_of_the_mlp_are_balanced():
    _, classes = small_networks.labelled(10_000)
    shares = torch.bincount(classes) / len(classes)
    assert len(shares) == small_networks.CLASSES and shares.min() > 0.1
