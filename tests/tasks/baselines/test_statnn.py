import torch

from tasks.baselines.statnn import StatNN, statistics
from tasks.models.mlp import MLPConfig
from tests.tasks.stacks import far, siren_stack


def test_statistics_by_hand():
    values = torch.tensor([[4.0, 0.0, 2.0, 1.0, 3.0]])
    # mean, variance, five quantiles
    assert statistics(values).tolist() == [[2.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0]]


@torch.no_grad()
def test_tensors_beyond_those_of_training_are_ignored():
    flat = siren_stack(2, 5, 1)
    deep = siren_stack(2, 5, 4, 1)
    architectures = [flat.architecture, siren_stack(2, 1).architecture]
    model = StatNN(architectures, 3, MLPConfig()).double()
    predictions = model(deep)
    first, second = deep.params[:2], deep.params[2:4]
    changed = [*first, *second, *(value + 1 for value in deep.params[4:])]
    torch.testing.assert_close(model(deep._replace(params=changed)), predictions)
    changed = [*first, *(value + 1 for value in second), *deep.params[4:]]
    assert far(model(deep._replace(params=changed)), predictions)
