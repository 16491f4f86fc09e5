"""Fits graph networks to the gains of trainings, with kinds left out.

Networks stay in the same batches, so that on a GPU each batch is one CUDA graph: the
networks are small, and kernel launches would take most of the time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.files import append_line, read_lines
from meta_train.step_size.graph_batches import (
    KERNEL,
    Batch,
    batch_of,
    moved,
    network_of,
)
from meta_train.step_size.graph_inputs import COLUMNS, COLUMNS_OF_WEIGHTS, GraphInput
from meta_train.step_size.outcomes import interpolated
from ngopt.learned_step.predictor import MAX_LOG2
from ngopt.metanets.layers.aggregation import scatter_extreme, scatter_sum
from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer

LAST_RATE = 0.02  # share of the learning rate in the end
DIGITS = 5


@dataclass(frozen=True)
class Sizes:
    """Of a `GraphPredictor`. hidden: of its head."""

    layer: Literal["ng-gnn", "ng-t"] = "ng-gnn"
    width: int = 8
    layers: int = 2
    heads: int = 4
    hidden: int = 16
    log_degree: float = 3.0


class GraphPredictor(nn.Module):
    """Maps networks to log2 multipliers of the step size.

    The states of neurons are averaged over each layer. Means and maxima over layers,
    with other features of the training, go through a head with one hidden layer. Its
    output is 0 initially, and within +-`MAX_LOG2`.

    d_in: features of an element. others: of a training.

    Shapes: a `Batch` of b networks and features (b, others) -> (b,).
    """

    def __init__(self, d_in: int, others: int, sizes: Sizes):
        super().__init__()
        layers: list[GraphLayer] = []
        for number in range(sizes.layers):
            updates_edges = number + 1 < sizes.layers
            if sizes.layer == "ng-gnn":
                layer = PNALayer(sizes.width, sizes.log_degree, updates_edges)
            else:
                layer = RelationalLayer(sizes.width, sizes.heads, edges=updates_edges)
            layers.append(layer)
        options = GraphNetworkOptions(activations=True)
        self.network = GraphNetwork(d_in, None, sizes.width, layers, KERNEL, options)
        self.norm = nn.LayerNorm(2 * sizes.width)
        self.hidden = nn.Linear(2 * sizes.width + others, sizes.hidden)
        self.out = nn.Linear(sizes.hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, batch: Batch, others: Tensor) -> Tensor:
        (nodes,), _ = self.network.states(batch, batch.tensors)
        pooled = self.norm(self.pooled(nodes, batch))
        hidden = torch.tanh(self.hidden(torch.cat([pooled, others], 1)))
        return MAX_LOG2 * torch.tanh(self.out(hidden).squeeze(1) / MAX_LOG2)

    def pooled(self, nodes: Tensor, batch: Batch) -> Tensor:
        """(b, 2 width) of all neurons (n, width)."""
        count = len(batch.group_sizes)
        sums = scatter_sum(nodes, batch.groups, count)
        means = sums / batch.group_sizes
        networks = len(batch.group_counts)
        total = scatter_sum(means, batch.networks, networks)
        largest = scatter_extreme(means, batch.networks, networks, "amax")
        return torch.cat([total / batch.group_counts, largest], 1)


class Variant(NamedTuple):
    """What a model reads. graph: number in `GRAPHS`. others: a key of `Examples`."""

    label: str
    layer: str
    graph: int = 0
    has_gradients: bool = True
    others: str = "horizon"


VARIANTS = (
    Variant("NG-GNN, parameters", "ng-gnn"),
    Variant("NG-T, parameters", "ng-t"),
    Variant("NG-GNN, traced", "ng-gnn", 1),
    Variant("NG-T, traced", "ng-t", 1),
    Variant("NG-GNN, parameters, without gradients", "ng-gnn", has_gradients=False),
    Variant("NG-GNN, parameters, with all features", "ng-gnn", others="all"),
)


@dataclass(frozen=True)
class Settings:
    """Of the fits. batch: networks."""

    sizes: Sizes = field(default_factory=Sizes)
    rate: float = 0.015
    penalty: float = 1e-2
    epochs: int = 12
    batch: int = 64
    seeds: int = 3


@dataclass(frozen=True)
class Examples:
    """n trainings.

    others: standardised features by name, (n, d) each. fine: log2 multipliers, (f,).
    curves: utilities there, (n, f). folds: in which each is left out, (n,).
    """

    inputs: Sequence[GraphInput]
    others: dict[str, Tensor]
    fine: Tensor
    curves: Tensor
    folds: Tensor

    def batches(self, graph: int, count: int) -> list[Batch]:
        """Random batches of up to `count` networks. graph: number in `GRAPHS`."""
        networks = []
        for own in self.inputs:
            networks.append(network_of(own.graphs[graph], own.columns()))
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(networks), generator=generator)
        return [batch_of(networks, own.tolist()) for own in order.split(count)]


def fit_all(
    examples: Examples, settings: Settings, path: Path, device: str
) -> dict[str, Tensor]:
    """Predictions (seeds, n) of every variant for kinds left out.

    Each fit is appended to a file of JSON lines. Fits that are there are left out.
    """
    start = perf_counter()

    @cache
    def batches(graph: int) -> list[Batch]:
        found = examples.batches(graph, settings.batch)
        return [moved(batch, device) for batch in found]

    @cache
    def fitter(variant: Variant) -> Fitter:
        return Fitter(examples, batches(variant.graph), variant, settings)

    stored = {}
    for record in read_lines([path]):
        stored[json.dumps(record["fit"])] = record
    records = []
    for seed, variant in product(range(settings.seeds), VARIANTS):
        for fold in examples.folds.unique().tolist():
            fit = description(variant, seed, fold, examples, settings)
            record = stored.get(json.dumps(fit))
            if record is None:
                places = fitter(variant).left_out(fold, seed)
                record = {"fit": fit, "places": places}
                append_line(path, record)
                seconds = perf_counter() - start
                print(variant.label, seed, fold, f"{seconds:.1f} s", flush=True)
            records.append(record)
    return collected(records, examples.folds, settings.seeds)


def description(
    variant: Variant, seed: int, fold: int, examples: Examples, settings: Settings
) -> dict[str, Any]:
    """What a fit depends on."""
    return {
        "variant": variant.label,
        "seed": seed,
        "fold": fold,
        "folds": len(examples.folds.unique()),
        "trainings": len(examples.folds),
        "width": settings.sizes.width,
        "epochs": settings.epochs,
        "batch": settings.batch,
    }


def collected(
    records: Sequence[dict[str, Any]], folds: Tensor, seeds: int
) -> dict[str, Tensor]:
    """Predictions (seeds, n) by variant."""
    found: dict[str, Tensor] = {}
    for record in records:
        fit = record["fit"]
        places = torch.tensor(record["places"])
        name = fit["variant"]
        if name not in found:
            found[name] = torch.full((seeds, len(folds)), torch.nan)
        found[name][fit["seed"], folds == fit["fold"]] = places
    return found


class Fitter:
    """Fits a variant several times, each time from new weights.

    Attributes:
        batches: of all networks; those that are left out have a weight of 0.
    """

    def __init__(
        self,
        examples: Examples,
        batches: Sequence[Batch],
        variant: Variant,
        settings: Settings,
    ):
        device = batches[0].numbers.device
        sizes = replace(settings.sizes, layer=variant.layer)
        self.settings = settings
        self.folds = examples.folds
        self._others = examples.others[variant.others].float().to(device)
        self._fine = examples.fine.float().to(device)
        self._curves = examples.curves.float().to(device)
        d_in = COLUMNS if variant.has_gradients else COLUMNS_OF_WEIGHTS
        self.batches = [replace(batch, d_in=d_in) for batch in batches]
        self._form = d_in, self._others.shape[1], sizes
        self.model = GraphPredictor(*self._form).to(device)
        self._params = list(self.model.parameters())
        for p in self._params:
            p.grad = torch.zeros_like(p)
        self._weights = self._others.new_zeros(len(self._others))
        self._places = self._others.new_zeros(len(self._others))
        self._graphs: list[torch.cuda.CUDAGraph] = []
        if device.type == "cuda":
            self._capture()

    def left_out(self, fold: int, seed: int) -> list[float]:
        """Predictions for a fold of a model that is fitted to the others."""
        is_test = self.folds == fold
        places = self.fitted(~is_test, seed)[is_test]
        return [round(float(place), DIGITS) for place in places]

    def fitted(self, is_train: Tensor, seed: int) -> Tensor:
        """Predictions (n,) of a model that is fitted to some of the networks, (n,)."""
        s = self.settings
        weights = is_train.float()
        self._weights.copy_(weights / weights.mean())
        self._restart(seed)
        is_fused = self._others.is_cuda
        opt = torch.optim.AdamW(
            self._params, s.rate, weight_decay=s.penalty, fused=is_fused
        )
        steps = s.epochs * len(self.batches)
        falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, LAST_RATE, steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(s.epochs):
            order = torch.randperm(len(self.batches), generator=generator)
            for number in order.tolist():
                self._run(number)
                opt.step()
                falling.step()
        for number in range(len(self.batches)):
            self._run(number)
        return self._places.cpu()

    def _restart(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = GraphPredictor(*self._form)
        self.model.load_state_dict(new.state_dict())

    def _run(self, number: int) -> None:
        """Gradients and predictions of a batch."""
        if self._graphs:
            self._graphs[number].replay()
        else:
            self._backward(self.batches[number])

    def _backward(self, batch: Batch) -> None:
        numbers = batch.numbers
        places = self.model(batch, self._others[numbers])
        gains = interpolated(places, self._fine, self._curves[numbers])
        loss = -(self._weights[numbers] * gains).mean()
        grads = torch.autograd.grad(loss, self._params, materialize_grads=True)
        with torch.no_grad():
            for p, grad in zip(self._params, grads, strict=True):
                assert p.grad is not None
                p.grad.copy_(grad)
            self._places.index_copy_(0, numbers, places)

    def _capture(self) -> None:
        """Makes a CUDA graph of every batch."""
        side = torch.cuda.Stream()
        pool = torch.cuda.graph_pool_handle()
        for batch in self.batches:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._backward(batch)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._backward(batch)
            self._graphs.append(graph)
