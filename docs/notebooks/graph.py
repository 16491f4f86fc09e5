# %% [markdown]
# # Look inside a neural graph
#
# A neural graph has a node for every neuron and an edge for every weight. `build_graph` makes it from any network. This
# notebook reads one, draws it, lists the roles of its parameters, and exchanges neurons without changing the network's
# function.

# %%
import tempfile
from pathlib import Path

import torch
from IPython.display import SVG
from torch import nn
from torch.func import functional_call

from ngopt import build_graph, parameter_roles
from ngopt.graph import draw

# %% [markdown]
# ## A network
#
# A small CNN with a norm and a residual connection.


# %%
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model = Network()
images = torch.randn(2, 1, 8, 8)
graph = build_graph(model, images)
print(graph.summary())

# %% [markdown]
# Each row of the summary is a group of neurons: the channels of a convolution or the units of a linear layer. Its edges
# come from the groups in the column *from*. The slots of an edge are the positions of a kernel: a 3x3 convolution has one
# edge of nine slots from each input channel to each output channel.
#
# ## A drawing

# %%
path = Path(tempfile.mkdtemp()) / "network.svg"
draw(graph, path, list(model.parameters()))
SVG(filename=path)

# %% [markdown]
# Boxes are groups, from the input at the top to the output at the bottom. An arrow is as thick as the norm of its weights.
#
# ## Every element has one place
#
# `gather` puts one tensor per parameter on nodes and edges. These may be weights, gradients or anything of the same shape.
# `scatter` is its inverse.

# %%
values = list(model.parameters())
on_graph = graph.gather(values)
for block, edges in zip(graph.weights, on_graph.edges, strict=True):
    source, target = graph.groups[block.source], graph.groups[block.target]
    print(f"{source.name:>6} -> {target.name:6} {block.kind:7} {tuple(edges.shape)}")

back = graph.scatter(on_graph)
print("the same:", all(torch.equal(p, q) for p, q in zip(values, back, strict=True)))

# %% [markdown]
# The shape of a block is (groups, targets, sources, slots). The scale of a norm is a diagonal: each target has one source,
# so it has as many groups as neurons.
#
# ## Roles
#
# `parameter_roles` returns what each parameter is for. The default optimizer reads these roles.

# %%
for name, role in parameter_roles(model, images).items():
    matrices = ", ".join(str(block.view.shape) for block in role.blocks)
    print(f"{name:13} {role.role:7} depth {role.depth:.2f}  {matrices}")

# %% [markdown]
# ## A permutation of neurons
#
# The six channels between `inner` and `outer` can be exchanged: move the rows of `inner` and the columns of `outer`
# together, and the function stays the same. On the graph, the neurons of the group `inner` get a new order. Every block
# and bias of that group follows.

# %%
numbers = {group.name: number for number, group in enumerate(graph.groups)}
inner = numbers["inner"]
print(graph.groups[inner])


def permuted(values, group, order):
    """The values with the neurons of a group in another order."""
    biases, edges = graph.gather(values)
    moved_biases = []
    for bias, value in zip(graph.biases, biases, strict=True):
        moved_biases.append(value[order] if bias.group == group else value)
    moved_edges = []
    for block, value in zip(graph.weights, edges, strict=True):
        if block.target == group:
            value = value[:, order]
        if block.source == group:
            value = value[:, :, order]
        moved_edges.append(value)
    return graph.scatter(type(on_graph)(tuple(moved_biases), tuple(moved_edges)))


order = torch.tensor([3, 0, 5, 1, 4, 2])
moved = permuted(values, inner, order)


def outputs(values):
    names = [name for name, _ in model.named_parameters()]
    return functional_call(model, dict(zip(names, values, strict=True)), (images,))


change = (outputs(moved) - outputs(values)).abs().max().item()
distance = (moved[4] - values[4]).norm().item()
print(f"distance of the weights of inner: {distance:.2f}")
print(f"largest change of an output:      {change:.1e}")

# %% [markdown]
# The weights changed, and the outputs did not, up to rounding. An optimizer or a model that reads the graph computes the
# same for both networks, up to that order of neurons.
#
# Channels of a residual connection are one group for all layers that add to it. To exchange the rows of `outer` alone is
# no symmetry:

# %%
wrong = [value.clone() for value in values]
wrong[6], wrong[7] = values[6][[1, 0, 2, 3]], values[7][[1, 0, 2, 3]]
change = (outputs(wrong) - outputs(values)).abs().max().item()
print(f"rows of outer alone: an output changes by {change:.2f}")

# %% [markdown]
# ## Symmetries of activations
#
# ReLU neurons can also be scaled: incoming weights times a positive number, outgoing weights divided by it.
# `symmetries` lists what is known for each group, `canonical` returns one representative network.

# %%
from ngopt.graph import canonical, symmetries

for group, symmetry in zip(graph.groups, symmetries(graph), strict=True):
    print(f"{group.name:10} {group.role:7} {symmetry}")

scaled = [value.detach().clone() for value in values]
scaled[4], scaled[5] = 7 * scaled[4], 7 * scaled[5]  # inner: weight and bias
scaled[6] = scaled[6] / 7  # weight of outer
same = canonical(graph, [value.detach() for value in values]).params
other = canonical(graph, scaled).params
gap = max((a - b).abs().max().item() for a, b in zip(same, other, strict=True))
print(f"largest difference of the canonical forms: {gap:.1e}")

# %% [markdown]
# Next: [The graph of any network](../graph.md) lists the supported layers, and [Extending](../extending.md) shows how to
# add a rule for your own module.
