import torch
from torch.func import stack_module_state

from tasks.networks.siren import Siren, pixel_grid, render


def test_stacked_sirens_render_as_each_alone():
    torch.manual_seed(0)
    models = [Siren((2, 5, 4, 3)).double() for _ in range(3)]
    stacked, _ = stack_module_state(models)
    points = torch.rand(7, 2, dtype=torch.float64)
    rendered = render(list(stacked.values()), points)
    assert rendered.shape == (3, 3, 7)
    for image, model in zip(rendered, models, strict=True):
        torch.testing.assert_close(image, model(points).mT)


def test_grid():
    points = pixel_grid(2, 3)
    assert points.tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
