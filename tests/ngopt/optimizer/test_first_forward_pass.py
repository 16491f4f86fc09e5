import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ngopt.optimizer.test_graph_source import forward_backward, optimizer, traced
from tests.ngopt.training import both_copies


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestBeforeTheFirstForward:
    """An ordinary hook of the model waits for its inputs."""

    def waiting(self):
        return traced(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))

    def test_the_model_keeps_its_dictionary_of_hooks(self):
        model = nn.Linear(3, 4)
        hooks = model._forward_pre_hooks
        optimizer(model.parameters(), model=model)
        assert model._forward_pre_hooks is hooks and len(hooks) == 1
        model(torch.randn(2, 3))
        assert not hooks and not model._forward_pre_hooks_with_kwargs
        torch.jit.script(model)

    def test_forward_passes_of_tracers_are_not_recorded(self):
        model, opt = self.waiting()
        x = torch.randn(2, 3)
        torch.jit.trace(model, x)
        torch.fx.symbolic_trace(nn.Sequential(model))
        torch.export.export(model, (x,))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(mode.from_tensor(x))
        assert opt._binding.source.awaits_forward

    @both_copies
    def test_copies_of_the_model_drop_their_hook_alone(self, duplicate):
        model, opt = self.waiting()
        model.register_forward_pre_hook(nothing)
        other = duplicate(model)
        other(torch.randn(2, 3))
        assert list(other._forward_pre_hooks.values()) == [nothing]
        assert opt._binding.source.awaits_forward
        model(torch.randn(2, 3))
        assert opt._binding.source.has_new_inputs

    def test_objects_among_the_inputs_are_recorded_as_before_the_pass(self):
        class Cached(nn.Linear):
            def forward(self, x, cache):
                cache.append(x)
                return super().forward(x)

        model, opt = traced(Cached(3, 4))
        model(torch.randn(2, 3), [])
        assert opt._binding.source.recorder.inputs.args[1] == []


def nothing(module, args):
    pass


@pytest.mark.parametrize("is_complete", [True, False])
def test_resuming_before_the_first_forward_pass(is_complete):
    model, opt = traced()
    forward_backward(model)
    opt.step()
    again, other = traced(copy.deepcopy(model))
    saved = copy.deepcopy(opt.state_dict())
    if not is_complete:
        del saved["state"][0]["step"]
    other.load_state_dict(saved)
    forward_backward(again)
    if is_complete:
        other.step()
        assert other.state[again.left.weight]["step"] == 2
    else:
        message = "'step' of 'left.weight': expected a tensor"
        with pytest.raises(ValueError, match=message):
            other.step()
