"""Training runs whose every digit is kept: the default and bundled metanets.

Cases train one of `NETWORKS`. They use the public interface alone, besides that of
`functional_rule`.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau

from meta_train.training.rules import WeightedRule
from ngopt import NeuralGraph, NGOptimizer, build_graph, load_pretrained
from ngopt.functional import BoundRule, Hyper, update_all
from tests.golden.networks import NETWORKS, Mixture, Table, loss_of, network
from tests.predictors import learned, random_predictor

STEPS = 20
METANETS = "ff", "lstm", "nfn", "ng-gnn", "ng-t"
SIX = "mlp", "cnn", "gpt", "lstm", "vit", "mixture"


class Snapshot(NamedTuple):
    """Tensors after a step: parameters by name, state by position and key."""

    parameters: dict[str, Tensor]
    state: dict[str, Tensor]


class Training:
    """A network, its optimizer, and one step on fixed data."""

    def __init__(self, case: "Case"):
        self.case = case
        self.scheduler: Any = None
        dtype = getattr(torch, case.dtype)
        self.model = network(case.network, dtype, case.is_trained)
        self.optimizer = self.made_optimizer(case.groups(self.model))

    def made_optimizer(self, groups: Any) -> NGOptimizer:
        settings = dict(self.case.settings)
        if NETWORKS[self.case.network].is_traced:
            settings["model"] = self.model
        if settings.get("lr") == "tensor":
            settings["lr"] = torch.tensor(0.5)
        return NGOptimizer(groups, **settings)

    def step(self, step: int) -> None:
        self.optimizer.zero_grad()
        loss_of(self.case.network, self.model, step).backward()
        if isinstance(self.model, Mixture | Table):
            self.model.disturb(step)
        self.optimizer.step()

    def snapshot(self) -> Snapshot:
        return Snapshot(values(self.model), state_of(self.optimizer))


def values(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, gathered from all ranks."""
    return {name: whole(p) for name, p in model.named_parameters()}


def state_of(optimizer: NGOptimizer) -> dict[str, Tensor]:
    return by_key(optimizer.state_dict()["state"].items())


def by_key(records: Iterable[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Copies of all tensors of numbered records, gathered from all ranks."""
    state = {}
    for number, record in records:
        for key, value in record.items():
            state[f"{number}.{key}"] = whole(value)
    return state


def whole(x: Tensor) -> Tensor:
    x = x.full_tensor() if isinstance(x, DTensor) else x
    return x.detach().clone()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digested = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().contiguous()
        digested.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digested.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()


# --- What a case does before step `step`, and at the end, where `step` is their number


def nothing(training: Training, step: int) -> None:
    pass


def scheduler(make: Callable[[NGOptimizer], Any]) -> Callable[[Training, int], None]:
    def schedule(training: Training, step: int) -> None:
        if step == 0:
            training.scheduler = make(training.optimizer)
        elif isinstance(training.scheduler, ReduceLROnPlateau):
            training.scheduler.step(1.0 / min(step, 5))
        else:
            training.scheduler.step()

    return schedule


def change_lr(training: Training, step: int) -> None:
    if step == 10:
        training.optimizer.param_groups[0]["lr"].fill_(0.25)


def lengthen(training: Training, step: int) -> None:
    if step == 10:
        training.optimizer.param_groups[0]["total_steps"] = 40


def add_rest(training: Training, step: int) -> None:
    if step == 5:
        rest = list(training.model.named_parameters())[4:]
        training.optimizer.add_param_group({"params": rest, "lr": 0.7})


def resume(training: Training, step: int) -> None:
    """The state goes through a file to a new optimizer."""
    if step == 10:
        file = io.BytesIO()
        torch.save(training.optimizer.state_dict(), file)
        file.seek(0)
        groups = training.case.groups(training.model)
        training.optimizer = training.made_optimizer(groups)
        training.optimizer.load_state_dict(torch.load(file))


def use_averages(training: Training, step: int) -> None:
    """The loss of the averages changes the BatchNorm buffers; at the end they stay."""
    if step == 10:
        with training.optimizer.averaged():
            loss_of(training.case.network, training.model, 50)
    if step == training.case.steps:
        training.optimizer.load_average()


def all_parameters(model: torch.nn.Module) -> Any:
    return model.named_parameters()


def unnamed(model: torch.nn.Module) -> Any:
    return model.parameters()


def first_parameters(model: torch.nn.Module) -> Any:
    return list(model.named_parameters())[:4]


def two_groups(model: torch.nn.Module) -> Any:
    """Matrices, and vectors at half the step size without weight decay."""
    named = list(model.named_parameters())
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": 2.0},
        {"params": vectors, "scale": 0.5, "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class Case:
    """A training run.

    settings: arguments of the optimizer. before: is called with the training run before
    each step, and at the end. is_trained: whether the initial weights look trained.
    """

    name: str
    network: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Training, int], None] = nothing
    groups: Callable[[torch.nn.Module], Any] = all_parameters
    is_trained: bool = False
    steps: int = STEPS
    dtype: str = "float64"

    def snapshots(self) -> Iterator[Snapshot]:
        """After each step, and at the end."""
        training = Training(self)
        for step in range(self.steps):
            self.before(training, step)
            training.step(step)
            yield training.snapshot()
        self.before(training, self.steps)
        yield training.snapshot()


@dataclass(frozen=True)
class Unroll:
    """Steps of the default as a function, differentiated through all of them.

    count: of stacked networks under vmap; 0: one network. The last snapshot has the
    gradient of the last loss with respect to the initial weights.
    """

    name: str
    network: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    count: int = 0
    steps: int = 5
    dtype: str = "float64"

    def snapshots(self) -> Iterator[Snapshot]:
        model = network(self.network, getattr(torch, self.dtype))
        rule = functional_rule(build_graph(model), self.count, **self.settings)
        names = [name for name, _ in model.named_parameters()]
        initial = []
        for p in model.parameters():
            p = p.detach()
            if self.count:
                p = torch.stack([p * (1 + k) for k in range(self.count)])
            initial.append(p.requires_grad_())
        hyper = Hyper([1.0] * len(names), [None] * len(names))

        def loss(params: Sequence[Tensor], step: int) -> Tensor:
            def one(*weights: Tensor) -> Tensor:
                named = dict(zip(names, weights, strict=True))
                return loss_of(self.network, _Functional(model, named), step)

            return torch.vmap(one)(*params).sum() if self.count else one(*params)

        params, state = list(initial), rule.init(initial)
        for step in range(self.steps):
            grads = torch.autograd.grad(loss(params, step), params, create_graph=True)
            deltas, state = update_all(rule, grads, state, params, hyper)
            params = [p + delta for p, delta in zip(params, deltas, strict=True)]
            yield Snapshot(
                dict(zip(names, params, strict=True)), by_key(enumerate(state))
            )
        slopes = torch.autograd.grad(loss(params, self.steps), initial)
        yield Snapshot(dict(zip(names, slopes, strict=True)), {})


def functional_rule(graph: NeuralGraph, count: int, **settings: Any) -> BoundRule:
    """The default as a function of gradients, state and weights.

    This is all that the cases use of what is not public.
    """
    rule = load_pretrained("default").bind(graph, **settings)
    if not count:
        return rule
    return WeightedRule(rule, torch.nn.Module(), (), (count,), shares_step=True)


class _Functional:
    """A module with other weights, as a function."""

    def __init__(self, model: torch.nn.Module, weights: dict[str, Tensor]):
        self.model, self.weights = model, weights

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.weights.values())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, self.weights, (x,))


HORIZON = {"total_steps": STEPS}


def cases(dtype: str) -> list[Case | Unroll]:
    """All cases of a dtype: "float64" or "float32"."""
    made: list[Case | Unroll] = []
    for name in (*SIX, "wide"):
        made.append(Case(f"{name}, horizon", name, HORIZON))
        made.append(Case(f"{name}, no horizon", name))
    factors = {"rule": learned(random_predictor(1.0)), **HORIZON}
    for name in SIX:
        made.append(Case(f"{name}, learned-step", name, factors))
    cosine = scheduler(lambda opt: CosineAnnealingLR(opt, STEPS))
    warmup = scheduler(lambda opt: LambdaLR(opt, lambda t: min(1, t / 5)))
    plateau = scheduler(lambda opt: ReduceLROnPlateau(opt, patience=2))
    tensor = {"scale": 0.5, "lr": "tensor"}
    long, short = {"total_steps": 2000}, {"total_steps": 12}
    made += [
        Case("table, horizon", "table", {"total_steps": 60}, steps=60),
        Case("table, no horizon", "table", steps=60),
        Case("groups", "gpt", HORIZON, groups=two_groups),
        Case("groups without horizon", "cnn", groups=two_groups),
        Case("cosine", "mlp", before=cosine),
        Case("warm-up from 0", "gpt", before=warmup),
        Case("plateau", "cnn", HORIZON, before=plateau),
        Case("lr tensor", "mlp", {**tensor, **HORIZON}, change_lr),
        Case("lr tensor without horizon", "lstm", tensor, change_lr),
        Case("maximize", "mlp", {"maximize": True, **HORIZON}),
        Case("averages", "cnn", before=use_averages),
        Case("averages of a gpt", "gpt", before=use_averages),
        Case("resumed", "gpt", HORIZON, resume),
        Case("resumed without horizon", "mixture", before=resume),
        Case("resumed, traced", "vit", HORIZON, resume),
        Case("resumed, learned-step", "cnn", factors, resume),
        Case("longer horizon", "mlp", HORIZON, lengthen),
        Case("long horizon", "lstm", long),
        Case("beyond the horizon", "cnn", short),
        Case("added group", "mlp", HORIZON, add_rest, first_parameters),
        Case("frozen", "vit", HORIZON, groups=first_parameters),
        Case("without names", "gpt", HORIZON, groups=unnamed),
        Case("lr and decay", "mlp", {"scale": 0.3, "weight_decay": 3.0} | HORIZON),
        Case("renewed each step", "lstm", {"precondition_frequency": 1} | HORIZON),
        Case("renewed each third step", "gpt", {"precondition_frequency": 3}),
        Case("trained", "mlp", HORIZON, is_trained=True),
        Case("trained, long", "gpt", long, is_trained=True),
        Case("trained without horizon", "cnn", is_trained=True),
        Unroll("unroll", "mlp", HORIZON),
        Unroll("unroll without horizon", "chain"),
        Unroll("stacked unroll", "mlp", count=2),
    ]  # fmt: skip
    if dtype == "float32":
        rounded = {"compute_dtype": torch.bfloat16}
        made += [
            Case("products in bfloat16", "gpt", rounded | HORIZON),
            Case("wide, products in bfloat16", "wide", rounded | HORIZON),
            Case("bfloat16", "mlp", HORIZON, dtype="bfloat16"),
        ]
    for name in METANETS:
        settings = {"rule": name}
        made.append(Case(f"metanet {name}", "chain", settings, steps=10))
        if name != "nfn":
            case = Case(f"metanet {name}, gpt", "gpt", settings, steps=10)
            made += [case]
            case = Case(f"metanet {name}, vit", "vit", settings, resume, steps=12)
            made += [case]
    return [replace(c, dtype=dtype) if c.dtype == "float64" else c for c in made]


def snapshots(case: Case | Unroll) -> list[Snapshot]:
    """Runs a case; steps beyond a horizon warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(case.snapshots())
