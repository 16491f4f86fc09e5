"""Context features of parameters: computed from the graph, or stored since an earlier
step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.functional import Gradients, Hyper, Record, uncompiled
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import STEP
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.metanet import Metanet

CONTEXT = "context"
"""Key of a parameter's context in its record, where it is used for several steps."""


class StepPlan(NamedTuple):
    """The inputs of a step (`BoundRule.update`) and how it computes, which the host
    decides.

    present: positions of parameters that have a gradient. like: of the metanet's dtype,
    on its device. is_small: whether all features are in memory during the step.
    reads_graph: whether the context is computed in this step.
    """

    grads: Gradients
    state: Sequence[Record]
    params: Sequence[Tensor]
    hyper: Hyper
    in_place: bool
    present: Sequence[int]
    like: Tensor
    is_small: bool
    reads_graph: bool


class GraphContext:
    """The context of all parameters of a graph, (numel, d) each.

    A metanet with `graph_every` = k > 1 computes it in every k-th step. In between it
    is stored in the records, in bfloat16.
    """

    def __init__(self, metanet: Metanet, graph: NeuralGraph):
        self.metanet = metanet
        self.graph = graph
        self.is_stored = metanet.graph_every > 1
        self._tensors: GraphTensors | None = None
        self._made_for: tuple | None = None

    @uncompiled
    def is_due(self, present: Sequence[int], state: Sequence[Record]) -> bool:
        """Whether the context is computed in this step. A record may be empty before
        the first step."""
        if not self.is_stored:
            return True
        steps = [int(state[i].get(STEP, 0)) for i in present]
        return min(steps) == 0 or max(steps) % self.metanet.graph_every == 0

    def of_step(
        self,
        plan: StepPlan,
        records: Sequence[Record],
        source: Callable[[], FeatureSource],
    ) -> list[Tensor] | None:
        """The context in a step; None if the metanet does not read the graph.

        records: after the step; a new context is stored in them. source: makes the
        features from which the context is computed, if it is.
        """
        if not self.metanet.d_context:
            return None
        if not plan.reads_graph:
            return self._stored(plan)
        tensors = self._graph_tensors(plan)
        if not self.is_stored:
            return self.metanet.context(source(), tensors)
        if torch.is_grad_enabled():
            context = [x.bfloat16() for x in self.metanet.context(source(), tensors)]
        else:
            out = self._stored(plan)
            if plan.in_place:
                return self.metanet.context(source(), tensors, out)
            out = [torch.empty_like(x) for x in out]
            context = self.metanet.context(source(), tensors, out)
        for i in plan.present:
            shape = (*plan.params[i].shape, self.metanet.d_context)
            records[i][CONTEXT] = context[i].view(shape)
        return context

    def _graph_tensors(self, plan: StepPlan) -> GraphTensors:
        """Made once; again if the metanet is moved."""
        like = plan.like
        limit = None
        if not plan.is_small:
            limit = chunking.total_chunk_size(chunking.EDGES, like)
        key = limit, like.device, like.dtype
        if self._tensors is None or self._made_for != key:
            self._tensors = self.metanet.graph_tensors(self.graph, like, limit)
            self._made_for = key
        assert self._tensors is not None
        return self._tensors

    def _stored(self, plan: StepPlan) -> list[Tensor]:
        """The context of the last computation, views of the records; zeros where
        absent."""
        d = self.metanet.d_context
        device = plan.like.device
        context = []
        for i, spec in enumerate(self.graph.parameters):
            if plan.grads[i] is not None:
                context.append(plan.state[i][CONTEXT].view(-1, d))
            else:
                zeros = torch.zeros(spec.numel, d, dtype=torch.bfloat16, device=device)
                context.append(zeros)
        return context
