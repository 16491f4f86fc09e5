"""Networks that tests of models read."""

import pytest
import torch

from tests.tasks.stacks import cnn_architecture, random_stack, siren_architecture

MAKES = {
    "siren": lambda: siren_architecture(2, 5, 4, 3, 2),
    "one hidden layer": lambda: siren_architecture(2, 5, 2),
    "cnn": cnn_architecture,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=MAKES)
def stack(request):
    return random_stack(MAKES[request.param]())
