import pytest
import torch

from tasks.models.learned_inputs import FreeInputs, GeneratedInputs, ImageGenerator


@torch.no_grad()
def test_generated_points_are_a_linear_map_of_the_codes():
    inputs = GeneratedInputs(3, (2,)).double()
    inputs.codes[2] = (inputs.codes[0] + inputs.codes[1]) / 2
    points = inputs()
    assert points.shape == (3, 2)
    torch.testing.assert_close(points[2], (points[0] + points[1]) / 2)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 5, 6), (2, 3, 40)])
def test_images_have_the_shape_of_the_inputs(shape):
    images = ImageGenerator(shape, latent=8, channels=4)(torch.randn(2, 8))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1


def test_other_inputs_are_refused():
    with pytest.raises(ValueError, match=r"points or images; got .*\(2, 3\)"):
        GeneratedInputs(4, (2, 3))


def test_free_points_are_initially_uniform_in_the_image():
    points = FreeInputs(1000, (2,))()
    assert points.requires_grad
    assert points.shape == (1000, 2)
    assert points.min() >= -1
    assert points.max() <= 1
    assert points.std().item() == pytest.approx(3**-0.5, abs=0.02)
