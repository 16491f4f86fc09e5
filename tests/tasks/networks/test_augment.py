import torch

from tasks.networks.augment import random_affine
from tests.tasks.stacks import random_stack, siren_architecture


def test_random_affine_maps_transform_the_coordinates():
    """For every network, one affine map of points explains all outputs."""
    stack = random_stack(siren_architecture(2, 5, 3, 1), count=3)
    torch.manual_seed(0)
    augmented = random_affine(stack, degrees=20, scale=0.2, shift=0.3)
    weight, bias = stack.params[:2]
    weight, bias = stack.params[:2]
    maps = torch.linalg.lstsq(weight, augmented.params[0]).solution  # W A = W'
    moved_bias = (augmented.params[1] - bias).unsqueeze(-1)
    shifts = torch.linalg.lstsq(weight, moved_bias).solution
    scales = torch.linalg.det(maps).sqrt()
    rotations = maps / scales[:, None, None]
    identity = torch.eye(2).double().expand(3, 2, 2)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    assert ((scales > 1 / 1.2) & (scales < 1.2)).all()
    assert (scales - 1).abs().min() > 1e-3
    assert rotations[:, 0, 0].min() >= torch.tensor(20.0).deg2rad().cos()
    assert shifts.abs().max() <= 0.3
    points, outputs = torch.rand(7, 2).double(), stack.architecture.outputs
    for k in range(3):
        there = points @ maps[k].mT + shifts[k].squeeze(-1)
        expected = outputs(stack.select([k]).params, there)
        torch.testing.assert_close(
            outputs(augmented.select([k]).params, points), expected
        )


def test_a_canonical_form_keeps_the_function_and_removes_signs_and_phases():
    stack = random_stack(siren_architecture(2, 5, 4, 1))
    canonical = stack.canonical()
    points, outputs = torch.rand(7, 2).double(), stack.architecture.outputs
    torch.testing.assert_close(
        outputs(canonical.params, points), outputs(stack.params, points)
    )
    params = [p.clone() for p in stack.params]
    for value in (params[0][:, 1], params[1][:, 1], params[2][:, :, 1]):
        value.neg_()
    params[3][:, 2] += torch.pi / stack.architecture.module.frequency
    params[4][:, :, 2].neg_()
    other = stack._replace(params=params).canonical()
    torch.testing.assert_close(canonical.params, other.params)
