import pytest
import torch

from tasks.baselines.probegen import ProbeGen, ProbeGenConfig
from tests.tasks.stacks import cnn_architecture, random_stack, siren_stack


def probegen(*architectures, probes=6):
    return ProbeGen(architectures, 3, ProbeGenConfig(probes=probes)).double()


@torch.no_grad()
def test_predictions_follow_from_the_outputs_on_the_probes():
    stack = siren_stack(2, 5, 4, 3)
    model = probegen(stack.architecture)
    outputs = stack.architecture.outputs(stack.params, model.inputs())
    assert outputs.shape == (4, 6, 3)
    torch.testing.assert_close(model(stack), model.head(outputs.reshape(4, 18)))


def test_networks_of_other_inputs_or_outputs_are_refused():
    points = siren_stack(2, 5, 1)
    images = random_stack(cnn_architecture())
    with pytest.raises(ValueError, match=r"\(2,\) and 1 outputs; got \(2,\) and 3"):
        probegen(points.architecture)(siren_stack(2, 5, 3))
    message = r"networks of inputs \(2,\) and 1 outputs; got \(1, 5, 6\) and 2"
    with pytest.raises(ValueError, match=message):
        probegen(points.architecture)(images)
    with pytest.raises(ValueError, match=message):
        probegen(points.architecture, images.architecture)
