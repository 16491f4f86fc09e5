import copy
from pickle import dumps, loads

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ngopt.optimizer.test_graph_source import (
    Parallel,
    forward_backward,
    optimizer,
)


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestBeforeTheFirstForward:
    """An ordinary hook of the model waits for its inputs."""

    def waiting(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        return model, optimizer(model.parameters(), model=model)

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

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda x: loads(dumps(x))])
    def test_copies_of_the_model_drop_their_hook_alone(self, how):
        model, opt = self.waiting()
        model.register_forward_pre_hook(nothing)
        other = how(model)
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

        model = Cached(3, 4)
        opt = optimizer(model.parameters(), model=model)
        model(torch.randn(2, 3), [])
        assert opt._binding.source.recorder.inputs.args[1] == []


def nothing(module, args):
    pass


def test_resuming_before_the_first_forward_pass():
    model = Parallel()
    opt = optimizer(model.parameters(), model=model)
    forward_backward(model)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    for wrong in (False, True):
        again = copy.deepcopy(model)
        other = optimizer(again.parameters(), model=again)
        if wrong:
            del saved["state"][0]["step"]
        other.load_state_dict(saved)
        forward_backward(again)
        if wrong:
            message = "'step' of 'left.weight': expected a tensor"
            with pytest.raises(ValueError, match=message):
                other.step()
        else:
            other.step()
            assert other.state[again.left.weight]["step"] == 2
