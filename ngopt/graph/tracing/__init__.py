"""Follows a network function by function: the neurons and parameters of every tensor.

`capture` lists the functions of a module, `interpreter` applies their rules, which add
nodes and edges (`Tracer.edges`), and `assembly` makes a graph of these, whose blocks
`blocks` finds. The steps for a ResNet-18 and an example input of (2, 3, 224, 224):

`RuleInterpreter._input`: the entries of an image are nodes 1 ... 150528, the labels of
the input, expanded over the batch. A parameter is `Elements`: its position in the list,
and the strides of its elements.

`conv2d(x, conv1.weight)`, rule `convolutions.convolution`. A convolution works alike on
all places, so that the entries of a channel become one node (`unify_channel_places`):
1, 50177 and 100353. There are 64 new nodes, 150529 ... 150592, and

    tracer.edges(elements, sources, targets, call=call)
        elements  conv1.weight as (1, 64, 3, 7, 7): groups, rows, columns, two of slots
        sources   (1, 1, 3)    1, 50177, 100353
        targets   (1, 64, 1)   150529 ... 150592

means that elements[0, j, i] are the slots of the edge from sources[0, 0, i] to
targets[0, j, 0]. The result is `Neurons` with labels (2, 64, 112, 112), the same in all
places.

`batch_norm(...)`, rule `norms.channel_norm`. Nodes 150593 ... 150656, one behind each
channel:

    tracer.edges(bn1.weight, sources, targets, "gamma")      (64,), (64,) and (64,)
    tracer.edges(bn1.bias, None, targets, "beta")            a feature of the targets

`relu(...)` has no rule. torch declares it pointwise, so that labels stay in
`pointwise.pointwise_function`, which records the name as their activation.
`max_pool2d`, rule `convolutions.pool`, keeps the channels too. The next convolution
has sources 150593 ... 150656, and so on to layer1.0.bn2 with 150849 ... 150912.

`add(...)`, rule `neuron_pairs.sum_of`. The block's input, 150593 ..., is added to its
output, 150849 ..., which is newer and to which only a weight was applied; a relu was
applied to the input. So the sum has the newer nodes, with edges of value 1 from the
older ones:

    tracer.edges(None, older, newer, "residual")

In layer2.0 both operands, 151553 ... from bn2 and 151809 ... from the norm of the
projection, are outputs of weights without any other use: they become one layer
(`Nodes.unify`), with the lower numbers.

`assemble`: no more nodes are unified. The labels of conv1 change along the axes of 64
(targets alone: rows) and 3 (sources alone: columns), and those of 7 are slots,

    EdgeBlock(View(0, shape=(1, 64, 3, 7, 7), strides=(0, 147, 49, 7, 1)), source=0,
              target=1, shape=(1, 64, 3), slot_shape=(7, 7), kind="weight")

while both ends of gamma change along its only axis, which is one of groups: (64, 1, 1).
Before fc nothing is flattened, as the maps are pooled to one place. In a VGG labels
repeat along the columns of a weight, one channel 49 times, and `blocks` splits that
axis into two: columns, and slots of kind "flatten". In the end there are 39 groups, 46
blocks, of which 5 are residual and have no parameter, and 21 biases.
"""
