from pathlib import Path

import pytest
import torch
from torch._dynamo import lookup_backend

from tasks.learning import training

DATA = Path(__file__).parent / "data"


@pytest.fixture
def data():
    """Small sets of networks."""
    return DATA


@pytest.fixture
def clock(monkeypatch):
    """Every training step takes a second."""
    now = iter(range(10**6))
    monkeypatch.setattr(training, "process_time", lambda: next(now))


@pytest.fixture
def compiled_eagerly(monkeypatch, request):
    """Modules are compiled without a C++ compiler; how many graphs each of them became.

    A parameter is the backend; "aot_eager" traces the derivatives, too.
    """
    name = getattr(request, "param", "eager")
    counts = []

    def compiled(self, **options):
        place = len(counts)
        counts.append(0)

        def backend(module, inputs):
            counts[place] += 1
            return lookup_backend(name)(module, inputs)

        call = torch.compile(self._call_impl, backend=backend, **options)
        self._compiled_call_impl = call

    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    return counts
