"""Follows a network function by function: which neurons and parameters every tensor
holds.

`capture` lists the functions of a module, `ngopt.graph.tracing.interpreter` goes through them, rules
say what each adds (`Tracer.edges`), and `finish` makes a graph of it, whose blocks
`blocks` finds. What a ResNet-18 becomes on the way, for an example input of (2, 3, 224,
224):

`RuleInterpreter._input`: the entries of an image are nodes 1 ... 150528, the labels of the input,
expanded over the batch. A parameter is `Elements`: its position in the list, and the
strides that say which element lies where.

`conv2d(x, conv1.weight)`, rule `maps.convolution`. A convolution works alike on all
places, so that the entries of a channel become one node (`maps.unify_channel_places`): 1, 50177
and 100353. There are 64 new nodes, 150529 ... 150592, and

    tracer.edges(elements, sources, targets, call=call)
        elements  conv1.weight as (1, 64, 3, 7, 7): groups, rows, columns, and two axes of slots
        sources   (1, 1, 3)    1, 50177, 100353
        targets   (1, 64, 1)   150529 ... 150592

says that elements[0, j, i] are the slots of the edge from sources[0, 0, i] to
targets[0, j, 0]. The result is `Neurons` with labels (2, 64, 112, 112), the same in all
places.

`batch_norm(...)`, rule `norms.channel_norm`. Nodes 150593 ... 150656, one behind each
channel:

    tracer.edges(bn1.weight, sources, targets, "gamma")      (64,), (64,) and (64,)
    tracer.edges(bn1.bias, None, targets, "beta")            a feature of the targets

`relu(...)` has no rule. `entrywise.pointwise_function` sees that torch calls it pointwise:
labels stay, and the name is noted down as their activation. `max_pool2d`, rule
`maps.pool`, keeps the channels too. The next convolution has sources 150593 ... 150656,
and so on to layer1.0.bn2 with 150849 ... 150912.

`add(...)`, rule `pairs.sum_of`. The block's input, 150593 ..., meets its output, 150849
..., which is newer and has had nothing but a weight applied to it; the input went
through a relu. So there are edges of value 1 from the older to the newer, whose nodes
the sum has:

    tracer.edges(None, older, newer, "residual")

In layer2.0 both sides, 151553 ... from bn2 and 151809 ... from the norm of the
projection, come from weights and go nowhere else: they become one layer
(`Nodes.unify`), which the lower numbers stand for.

`finish`: it is known now which nodes are the same. The labels of conv1 change along the
axes of 64 (targets alone: rows) and 3 (sources alone: columns), and those of 7 are
slots,

    EdgeBlock(View(0, shape=(1, 64, 3, 7, 7), strides=(0, 147, 49, 7, 1)), source=0,
    target=1,
              shape=(1, 64, 3), slot_shape=(7, 7), kind="weight")

while both ends of gamma change along its only axis, which is one of groups: (64, 1, 1).
Before fc nothing is flattened, as the maps are pooled to one place; where they are, as
in VGG, labels repeat along the columns of a weight, one channel 49 times, and `blocks`
finds two axes in that
one: columns, and slots of kind "flatten". In the end there are 39 groups, 46 blocks, of
which 5 are residual and have no parameter, and 21 biases.
"""
