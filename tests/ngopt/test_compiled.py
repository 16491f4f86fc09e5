"""Steps under `torch.compile`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend

from ngopt import NGOptimizer

# How many graphs a step is compiled into: before ng-gnn looks at the neural graph again, and after.
# What the host counts stands between them: steps, looks, renewals of bases.
GRAPHS = {
    ("default", None): (4, 4),
    ("default", 40): (4, 4),
    ("ff", None): (1, 1),
    ("ff", 40): (3, 3),
    ("ng-gnn", None): (2, 7),
}


@pytest.mark.parametrize(("weights", "total_steps"), GRAPHS)
def test_a_compiled_step_is_the_same_and_is_not_compiled_again(weights, total_steps):
    torch.manual_seed(0)
    compiled, graphs = nn.Linear(4, 3), []
    eager = copy.deepcopy(compiled)

    def backend(module, inputs):
        graphs.append(module)
        return lookup_backend("aot_eager")(module, inputs)

    torch.compiler.reset()
    ours = NGOptimizer(compiled.parameters(), weights=weights, total_steps=total_steps)
    theirs = NGOptimizer(eager.parameters(), weights=weights, total_steps=total_steps)
    step, counts = torch.compile(ours.step, backend=backend), []
    for seed in range(26):
        for model in (compiled, eager):
            model.zero_grad()
            inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
            F.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
        # the first step makes the graph and the state
        step() if seed else ours.step()
        theirs.step()
        counts.append(len(graphs))
    # at step 8 ng-gnn looks at the graph again; the default may recall its first three gradients
    assert (counts[7], counts[8]) == GRAPHS[weights, total_steps]
    assert counts[-1] == counts[8]
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        # rounding grows in eigenbases; the weights move by some hundredths
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
