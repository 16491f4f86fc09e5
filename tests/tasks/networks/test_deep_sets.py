import torch
import torch.nn.functional as F

from tasks.networks.deep_sets import DeepSets
from tasks.networks.siren import pixel_grid


def model_of(activation="relu", **more):
    torch.manual_seed(0)
    return DeepSets(3, [5, 7, 4], activation, side=8, **more).double()


def test_a_layer_adds_maps_of_a_pixel_and_of_the_mean():
    model = model_of()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    pooled = F.avg_pool2d(images, 4)[0]
    places = pixel_grid(8, 8).double()
    pixels = [torch.cat([pooled[:, k // 8, k % 8], places[k]]) for k in range(64)]
    x = torch.stack([F.relu(model.embed(pixel)) for pixel in pixels])
    for linear, mean in zip(model.own, model.mean, strict=True):
        shared = linear.bias + mean.weight @ x.mean(0)
        x = torch.stack([F.relu(linear.weight @ pixel + shared) for pixel in x])
    torch.testing.assert_close(model(images)[0], model.fc(x.mean(0)))


def test_without_coordinates_the_order_of_pixels_does_not_matter():
    model = model_of()
    with torch.no_grad():
        model.embed.weight[:, 3:] = 0
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    turned = images.rot90(1, (2, 3))
    torch.testing.assert_close(model(turned), model(images))
    assert not torch.allclose(model_of()(turned), model_of()(images))


def test_groups_are_neurons_of_pixels_and_of_their_means():
    model = model_of("tanh")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    names = "x", "first", "places", "second", "third", "output", "mean"
    groups = dict(zip(names, model.group_activations(images), strict=False))
    torch.testing.assert_close(groups["places"][1], pixel_grid(8, 8).mT.double())
    pixels = torch.cat([F.avg_pool2d(images, 4).flatten(2), groups["places"]], 1)
    torch.testing.assert_close(groups["first"], model.embed(pixels.mT).tanh().mT)
    torch.testing.assert_close(groups["mean"], groups["first"].mean(2, keepdim=True))
    torch.testing.assert_close(groups["output"], model.fc(groups["third"].mean(2)))
