import pytest
import torch

from ngopt.metanets import NeuralGraphGNN


@pytest.fixture
def metanet():
    torch.manual_seed(0)
    return NeuralGraphGNN()
