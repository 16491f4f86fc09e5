"""Multipliers of step sizes: what they read, and what they change."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.soap.config import Measured
from ngopt.soap.soap import Soap
from tests.ngopt.training import same, snapshot

STEPS = 4
close = partial(torch.testing.assert_close, rtol=1e-6, atol=0, check_dtype=False)


@dataclass
class Recorder:
    """Halves all step sizes, counts its calls in the state, and keeps what it reads."""

    state: ClassVar[dict[str, float]] = {"calls": 3.0}
    factor: float = 0.5
    network: object = None
    measured: list[Measured] = field(default_factory=list)
    progress: list[float | None] = field(default_factory=list)

    def bind(self, network):
        self.network = network
        return self

    def __call__(self, measured, progress, state):
        self.measured.append(measured)
        self.progress.append(progress)
        state["calls"] = state["calls"] + 1
        return torch.full_like(measured.grad_rms, self.factor)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 3)).double()


def gradients(network, step):
    generator = torch.Generator().manual_seed(step)
    like = {"generator": generator, "dtype": torch.float64}
    return [torch.randn(p.shape, **like) for p in network.parameters()]


def trained(multiplier, steps=STEPS, total_steps=100):
    network, rule = model(), Soap(multiplier=multiplier)
    opt = NGOptimizer(network.named_parameters(), rule=rule, total_steps=total_steps)
    for step in range(steps):
        for p, g in zip(network.parameters(), gradients(network, step), strict=True):
            p.grad = g
        opt.step()
    return network, opt


def test_the_first_change_has_the_factor():
    changes = []
    for multiplier in (None, Recorder()):
        network, _ = trained(multiplier, steps=1)
        pairs = zip(network.parameters(), model().parameters(), strict=True)
        changes.append([p.detach() - q.detach() for p, q in pairs])
    for expected, change in zip(*changes, strict=True):
        torch.testing.assert_close(change, 0.5 * expected)


class Absent(Recorder):
    def bind(self, network):
        return None


@pytest.mark.parametrize("multiplier", [Recorder(factor=1.0), Absent()])
def test_factors_of_one_and_an_absent_multiplier_change_nothing(multiplier):
    expected, _ = trained(None)
    network, opt = trained(multiplier)
    assert same(network, snapshot(expected))
    calls = 0 if isinstance(multiplier, Absent) else STEPS
    assert opt.state[next(network.parameters())]["calls"] == 3 + calls


def test_measured_values_are_those_of_the_step_and_of_the_first():
    recorder = Recorder()
    network, _ = trained(recorder)
    first = recorder.measured[0]
    for step, measured in enumerate(recorder.measured):
        rms = [g.square().mean().sqrt() for g in gradients(network, step)]
        close(measured.grad_rms, torch.stack(rms))
        for key in ("grad_rms", "weight_rms", "density", "excess"):
            kept = getattr(measured.first, key)
            torch.testing.assert_close(kept, getattr(first, key).to(kept))
    assert first.is_first.all()
    assert recorder.measured[1].is_first is None
    rms = torch.stack([p.square().mean().sqrt() for p in model().parameters()])
    close(first.weight_rms, rms.detach())


def test_the_network_has_roles_shapes_and_the_horizon():
    recorder = Recorder()
    trained(recorder)
    network = recorder.network
    roles = ["embedding", "matrix", "bias", "output", "bias"]
    assert [role.role for role in network.roles] == roles
    assert network.shapes == [(7, 4), (5, 4), (5,), (3, 5), (3,)]
    assert network.total_steps == 100
    assert network.graph.parameters[1].name == "1.weight"


def test_progress_is_the_share_of_the_horizon():
    recorder = Recorder()
    trained(recorder)
    assert recorder.progress == pytest.approx([0, 0.01, 0.02, 0.03])
    without = Recorder()
    trained(without, total_steps=None)
    assert without.progress == [None] * STEPS


def test_its_scalars_are_in_the_state_and_resume():
    network, opt = trained(Recorder())
    rule = Soap(multiplier=Recorder())
    other = NGOptimizer(network.named_parameters(), rule=rule, total_steps=100)
    other.load_state_dict(opt.state_dict())
    for p in network.parameters():
        first, loaded = opt.state[p], other.state[p]
        assert first["calls"] == loaded["calls"] == 3 + STEPS
        assert torch.equal(loaded["first_grad_rms"], first["first_grad_rms"])


def test_no_weights_file_stores_it(tmp_path):
    learned = Soap(multiplier=Recorder())
    assert weights_hash(learned) != weights_hash(Soap())
    with pytest.raises(ValueError, match="expected no multiplier or a LearnedStep"):
        save_pretrained(learned, tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())
