"""Networks whose parameters were labelled by hand, from the code that defines them.

A file `../labels/NAME.json` has the labels of a network that the function NAME of a
module of this package builds:

    code: where the labels were read, in words.
    parameters: name -> label. "*" in a name stands for any part without a dot, such as
        the number of a layer. Each parameter has one label.

A label has a role, one of `ngopt.roles.from_graph.ROLES`, and for an embedding, output
or matrix the list "matrices"; without it the parameter is one matrix, whose rows are
the first dimension (of an embedding the last one) and whose columns are the others.
An entry of the list is one or several matrices of the parameter:

    part: [dimension, start, stop], the slice of the parameter that the rest speaks of;
        without it all.
    axes: names of the dimensions, outermost first; those in brackets are one dimension
        of the parameter: "(head part size) in".
    sizes: of the axes in brackets, but for one of each bracket at most.
    where: axis -> [start, stop], only these places of the axis.
    apart: axes along which matrices follow one another: experts, gates, groups.
    heads: axes along which heads follow one another: together they are one matrix, and
        each of them is one if heads are split. Axes of groups of heads that share keys
        come first.
    rows, columns: the other axes, outputs and inputs, and those of heads again, as they
        are ordered in the whole matrix. Without "rows" they are the axes of the first
        dimension that are not apart, without "columns" all others.
"""
