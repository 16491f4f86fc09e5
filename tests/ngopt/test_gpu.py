"""Steps on a GPU, through the public interface: `pytest -m gpu`.

Networks are trained on fixed random gradients. An error is the distance between weights
and those of a reference, relative to the distance that the reference has moved.
"""

import copy
import io
from contextlib import contextmanager

import pytest
import torch
from torch import distributed, nn
from torch.autograd import DeviceType
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("torchvision")

from benchmarks.shapes import TINY_WORKLOADS, loss_of
from meta_train.problems.networks.convolutional import paper_cnn
from ngopt import NGOptimizer, list_pretrained, load_pretrained
from ngopt.pretrained import LearnedOptimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # of torch's compiler and profiler, which differ between versions
    pytest.mark.filterwarnings("default"),
]

STEPS, FREQUENCY, HORIZON = 14, 3, 100
WARM_UP, REPLAYS = 11, 6  # steps before a capture by the user, and after it
STABLE = 40  # steps, of which most are replayed by the optimizer's own CUDA graphs

# Limits of errors in float64 and float32, whose rounding preconditioners amplify.
EXACT, ROUNDING = 1e-8, 3e-4
# Weights in bfloat16 and operands of products may round to the other neighbour.
BFLOAT16 = 0.02
FULL_PRECISION = 2e-5  # TF32 rounds to 5e-4
FEEDBACK = 0.01  # where gradients depend on the weights

# every metanet can read the first one
NETWORKS = {"plain CNN": lambda: paper_cnn(1, (8, 16, 16))}
NETWORKS |= {name: workload.make for name, workload in TINY_WORKLOADS.items()}
RULES = {name: load_pretrained(name) for name in list_pretrained()}
METANETS = [k for k, rule in RULES.items() if isinstance(rule, LearnedOptimizer)]

each_network = pytest.mark.parametrize("name", NETWORKS)


class Run:
    """A copy of a network on a device, with its optimizer."""

    def __init__(self, network, device="cuda", rule="default", **settings):
        dtype = settings.pop("dtype", torch.float32)
        settings.setdefault(
            "precondition_frequency", FREQUENCY if rule == "default" else None
        )
        self.model = copy.deepcopy(network).to(device, dtype)
        self.start = values(self.model)
        self.params = list(self.model.parameters())
        for p in self.params:
            p.grad = torch.zeros_like(p)
        settings.setdefault("total_steps", HORIZON)
        self.optimizer = NGOptimizer(self.params, rule=rule, **settings)

    def set_gradients(self, number):
        """Gradients of a step, in the same places, with equal values on all devices."""
        generator = torch.Generator().manual_seed(number)
        for p in self.params:
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.grad is not None:
                p.grad.copy_(grad)

    def train(self, steps=STEPS, first=0, is_eager=False):
        """is_eager: weights move before each step, so that no CUDA graph fits."""
        for number in range(first, first + steps):
            self.set_gradients(number)
            if is_eager:
                move_weights(self)
            self.optimizer.step()
        return self

    def error(self, reference):
        moved = distance(reference.start, values(reference.model))
        return distance(values(self.model), values(reference.model)) / moved


def values(model):
    """All weights, on the CPU in float64."""
    weights = [p.detach().flatten().double().cpu() for p in model.parameters()]
    return torch.cat(weights)


def distance(a, b):
    return torch.linalg.vector_norm(a - b).item()


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


@contextmanager
def side_stream():
    """Runs work on another stream, in order with work before and after."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@each_network
@pytest.mark.parametrize(
    ("dtype", "compute_dtype", "limit"),
    [
        (torch.float64, torch.float64, EXACT),
        (torch.float32, torch.float32, ROUNDING),  # with Triton kernels on the GPU
        (torch.bfloat16, torch.float32, BFLOAT16),
    ],
)
def test_steps_equal_those_on_a_cpu(name, dtype, compute_dtype, limit):
    settings = {"dtype": dtype, "compute_dtype": compute_dtype}
    reference = Run(network(name), "cpu", **settings).train()
    assert Run(network(name), **settings).train().error(reference) < limit


@pytest.mark.parametrize("rule", METANETS)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, EXACT), (torch.float32, ROUNDING)]
)
def test_steps_of_metanets_equal_those_on_a_cpu(rule, dtype, limit):
    settings = {"rule": rule, "dtype": dtype, "compute_dtype": dtype}
    reference = Run(network("plain CNN"), "cpu", **settings).train()
    assert Run(network("plain CNN"), **settings).train().error(reference) < limit


@each_network
def test_steps_have_no_host_sync(name):
    check_no_host_sync(Run(network(name)).train())


@pytest.mark.parametrize("rule", METANETS)
def test_steps_of_metanets_have_no_host_sync(rule):
    check_no_host_sync(Run(network("plain CNN"), rule=rule).train())


def check_no_host_sync(run):
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS):
            run.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_network
@pytest.mark.parametrize(
    ("compute_dtype", "limit"), [(torch.float32, ROUNDING), (None, BFLOAT16)]
)
def test_replays_of_a_captured_step_equal_eager_steps(name, compute_dtype, limit):
    reference = Run(network(name), compute_dtype=compute_dtype)
    reference.train(WARM_UP + REPLAYS)
    run = Run(network(name), compute_dtype=compute_dtype)
    with side_stream():
        run.train(WARM_UP)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.optimizer.step()
    for number in range(WARM_UP, WARM_UP + REPLAYS):
        run.set_gradients(number)
        graph.replay()
    counts = {int(record["step"]) for record in run.optimizer.state.values()}
    assert counts == {WARM_UP + REPLAYS}
    assert run.error(reference) < limit


def move_weights(run):
    for p in run.params:
        p.data = p.data.clone()


def launches(step):
    """Graphs and kernels that the host launches, and kernels that the device runs."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    graphs = launched = kernels = 0
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            kernels += not event.name.startswith(("Memcpy", "Memset"))
        else:
            graphs += event.name == "cudaGraphLaunch"
            launched += "LaunchKernel" in event.name
    return graphs, launched, kernels


@each_network
def test_replayed_steps_equal_eager_steps(name):
    settings = {"compute_dtype": torch.float32}
    reference = Run(network(name), **settings).train(STABLE, is_eager=True)
    run = Run(network(name), **settings).train(STABLE)
    assert run.error(reference) < ROUNDING
    run.set_gradients(STABLE)
    reference.set_gradients(STABLE)
    move_weights(reference)
    versions = [p._version for p in run.params]
    graphs, launched, kernels = launches(run.optimizer.step)
    eager_graphs, eager_launched, eager_kernels = launches(reference.optimizer.step)
    assert (graphs, eager_graphs) == (1, 0)
    assert launched < eager_launched / 2
    assert 0 < kernels < 1.5 * eager_kernels
    # autograd raises for saved tensors that a replay has changed
    assert all(p._version > v for p, v in zip(run.params, versions, strict=True))


def halve_learning_rate(run):
    run.optimizer.param_groups[0]["lr"] = 0.5


def load_state(run):
    run.optimizer.load_state_dict(run.optimizer.state_dict())


def replace_gradients(run):
    for p in run.params:
        p.grad = torch.zeros_like(p)


def drop_gradient(run):
    run.params[1].grad = None


def replace_averages(run):
    for p in run.params:
        run.optimizer.state[p]["average"] = torch.zeros_like(p)


def pickle(run):
    torch.save(run.optimizer, io.BytesIO())


@pytest.mark.parametrize(
    "change",
    [
        halve_learning_rate,
        load_state,
        replace_gradients,
        drop_gradient,
        replace_averages,
        move_weights,
        pickle,
    ],
)
def test_changes_between_replays(change):
    def trained(is_eager):
        run = Run(network("plain CNN"), compute_dtype=torch.float32, total_steps=None)
        run.train(STABLE, is_eager=is_eager)
        change(run)
        run.train(2, STABLE, is_eager)  # before and after the graphs are made again
        soon_after.append(values(run.model))
        return run.train(STABLE, STABLE + 2, is_eager)

    soon_after = []
    reference = trained(is_eager=True)
    run = trained(is_eager=False)
    assert run.error(reference) < ROUNDING
    expected, actual = soon_after
    assert distance(actual, expected) < ROUNDING * distance(expected, reference.start)
    for p, q in zip(run.params, reference.params, strict=True):
        average = run.optimizer.state[p]["average"]
        expected = reference.optimizer.state[q]["average"]
        torch.testing.assert_close(average, expected, rtol=1e-3, atol=1e-5)


def test_steps_on_a_side_stream_equal_those_on_a_cpu():
    settings = {"compute_dtype": torch.float32}
    reference = Run(network("tiny GPT"), "cpu", **settings).train()
    with side_stream():
        run = Run(network("tiny GPT"), **settings).train()
    assert run.error(reference) < ROUNDING


def allow_tf32():
    """As in most training scripts."""
    torch.set_float32_matmul_precision("high")


def allow_tf32_by_the_new_name():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("allow", [allow_tf32, allow_tf32_by_the_new_name])
def test_factors_and_eigenbases_have_full_precision(allow):
    def factors(run):
        keys = "rows", "channels", "kernel"
        tensors = []
        for p in run.params:
            for key, x in run.optimizer.state[p].items():
                if key.startswith(keys):
                    tensors.append(x.flatten().double().cpu())
        return torch.cat(tensors)

    settings = {"compute_dtype": torch.float32}
    reference = factors(Run(network("tiny GPT"), "cpu", **settings).train())
    try:
        allow()
        run = Run(network("tiny GPT"), **settings).train()
    finally:
        torch.set_float32_matmul_precision("highest")
    error = distance(factors(run), reference) / reference.norm().item()
    assert error < FULL_PRECISION


def test_grad_scaler_skips_infinite_gradients_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    workload = TINY_WORKLOADS["tiny CNN"]
    batch = workload.batch(torch.device("cuda"))
    plain, scaled = Run(network("tiny CNN")), Run(network("tiny CNN"))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)

    def scaled_backward():
        scaled.optimizer.zero_grad()
        scaler.scale(loss_of(scaled.model, *batch)).backward()

    for _ in range(STEPS):
        plain.optimizer.zero_grad()
        loss_of(plain.model, *batch).backward()
        plain.optimizer.step()
        scaled_backward()
        scaler.step(scaled.optimizer)
        scaler.update()
    assert scaled.error(plain) < BFLOAT16
    before = values(scaled.model)
    scaled_backward()
    scaled.params[0].grad.fill_(torch.inf)
    scaler.step(scaled.optimizer)
    scaler.update()
    assert torch.equal(values(scaled.model), before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_one_optimizer_on_two_devices():
    settings = {"compute_dtype": torch.float32}
    reference = Run(network("plain CNN"), "cpu", **settings).train()
    run = Run(network("plain CNN"), "cuda:0", **settings)
    for p in run.params[::2]:
        p.data = p.data.to("cuda:1")
        p.grad = torch.zeros_like(p)
    assert run.train().error(reference) < ROUNDING


@pytest.fixture
def one_rank():
    distributed.init_process_group(
        "cuda:nccl,cpu:gloo", store=distributed.HashStore(), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("policy", [OffloadPolicy(), CPUOffloadPolicy()], ids=type)
def test_one_rank_equals_no_rank(policy, one_rank):
    """With NCCL; with weights, gradients and state on the CPU in the second case."""
    start = network("tiny GPT").cuda()
    plain, sharded = copy.deepcopy(start), copy.deepcopy(start)
    fully_shard(sharded, offload_policy=policy)
    batch = TINY_WORKLOADS["tiny GPT"].batch(torch.device("cuda"))
    for model in (plain, sharded):
        optimizer = NGOptimizer(model.parameters(), total_steps=HORIZON)
        for _ in range(STEPS):
            logits = model(batch[0]).flatten(0, 1)
            cross_entropy(logits, batch[1].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    local = nn.ParameterList(p.to_local().detach() for p in sharded.parameters())
    moved = distance(values(plain), values(start))
    assert distance(values(local), values(plain)) < FEEDBACK * moved
