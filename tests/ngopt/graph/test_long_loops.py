"""The work of a trace grows in proportion to the number of functions.

Functions of torch and the entries of their results are counted, not seconds.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ngopt.graph import build, build_graph
from ngopt.graph.tracing.capture import capture
from ngopt.graph.tracing.interpreter import trace
from tests.selection import quick_first

WIDTH = 6


class Work(TorchDispatchMode):
    """Counts the functions of torch that run, and the entries that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if not func.is_view:
            # what is written into a tensor is another argument
            is_in_place = func._schema.is_mutable
            written = tree_leaves((args[1:], kwargs) if is_in_place else result)
            self.entries += sum(x.numel() for x in written if isinstance(x, Tensor))
        return result


class Loop(nn.Module):
    """Steps of a cell. embeds: a layer inside of the loop reads the input."""

    def __init__(self, cell: nn.Module, embeds: bool = False):
        super().__init__()
        self.cell = cell
        self.embed = nn.Linear(WIDTH, WIDTH) if embeds else nn.Identity()
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:  # (b, steps, width)
        state = self.first(x[:, 0])
        outputs = []
        for step in x.unbind(1):
            state = self.cell(self.embed(step), state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(outputs, 1))

    def first(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        zero = torch.zeros(len(x), WIDTH)
        return (zero, zero) if isinstance(self.cell, nn.LSTMCell) else zero


class NormedCell(nn.Module):
    """A cell whose next step has other nodes than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.GRUCell(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.norm(self.cell(x, h))


class GatedCell(nn.Module):
    """Written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        update, new = self.gates(torch.cat([x, h], 1)).chunk(2, 1)
        update = update.sigmoid()
        return (1 - update) * h + update * new.tanh()


class Plain(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + torch.sin(h) * torch.linspace(0, 1, WIDTH)


class WrittenLoop(Loop):
    """Writes its outputs into one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = self.first(x[:, 0]), torch.zeros(x.shape)
        for k, step in enumerate(x.unbind(1)):
            state = self.cell(self.embed(step), state)
            outputs[:, k] = state
        return self.out(outputs)


LOOPS = {
    "lstm": lambda: Loop(nn.LSTMCell(WIDTH, WIDTH)),
    "lstm behind a layer": lambda: Loop(nn.LSTMCell(WIDTH, WIDTH), embeds=True),
    "normed": lambda: Loop(NormedCell(), embeds=True),
    "rnn": lambda: Loop(nn.RNNCell(WIDTH, WIDTH)),
    "by hand": lambda: Loop(GatedCell()),
    "by hand behind a layer": lambda: Loop(GatedCell(), embeds=True),
    "written": lambda: WrittenLoop(nn.RNNCell(WIDTH, WIDTH), embeds=True),
    "plain": lambda: Loop(Plain(), embeds=True),
}


@pytest.mark.parametrize("name", quick_first(LOOPS, ("lstm", "normed", "plain")))
def test_work_of_a_loop_is_linear_in_its_length(name):
    model = LOOPS[name]()
    works = []
    for steps in (8, 16, 32):
        program = capture(model, torch.randn(2, steps, WIDTH))
        with Work() as work:
            trace(program, model)
        works.append((work.calls, work.entries))
    calls, entries = zip(*works, strict=True)
    # a write into one tensor copies the labels of all of it
    for few, some, many in [calls, entries] if name != "written" else [calls]:
        # of 16 more steps and of 8 more; memory grows by doubling
        assert many - some < 2.5 * (some - few)


@pytest.mark.parametrize("long", [0, 1000])
def test_a_long_trace_says_so_once(monkeypatch, caplog, long):
    monkeypatch.setattr(build, "LONG", long)
    build_graph(LOOPS["rnn"](), torch.randn(2, 3, WIDTH))
    messages = [r.getMessage() for r in caplog.records if r.name == "ngopt"]
    assert len(messages) == (long == 0)
    assert all("tracing Loop takes" in message for message in messages)
