import json
import re
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

from benchmarks import cost_model
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import (
    correctness,
    cost,
    optimizers,
    summary,
    timing,
)
from benchmarks.gpu.session import Records, Session, Skipped, in_process
from benchmarks.shapes import TINY_WORKLOADS, Gpt
from ngopt import devices


@pytest.fixture
def fake_cuda(monkeypatch):
    """Streams and graphs of CUDA on a CPU: a replay runs what was captured."""
    cuda = torch.cuda
    calls = []

    class Stream:
        def wait_stream(self, other):
            calls.append("wait")

    class Graph:
        def replay(self):
            calls.append("replay")
            self.captured()

    @contextmanager
    def entered(name, value):
        calls.append(name)
        yield value

    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda, "stream", partial(entered, "stream"))
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", partial(entered, "graph"))
    monkeypatch.setattr(cuda, "set_sync_debug_mode", calls.append)
    monkeypatch.setattr(Session, "need_cuda", lambda self: None)
    return calls


class TestProgram:
    @pytest.mark.thorough
    def test_everything_on_a_cpu(self, tmp_path, capsys):
        arguments = ["--device", "cpu", "--tiny", "--folder", str(tmp_path / "new")]
        program.main([*arguments, "--minutes", "5"])  # takes one
        found = json.loads((tmp_path / "new" / "gpu.json").read_text())
        assert list(found) == list(program.SHARES)
        assert all(part["machine"]["device"] == "cpu" for part in found.values())
        statuses = {
            part: [record["status"] for record in content["records"]]
            for part, content in found.items()
        }
        assert statuses["correctness"].count("ok") == 16
        assert statuses["cost"].count("ok") >= 8 * len(TINY_WORKLOADS)
        assert statuses["lm"] == ["ok"] * 5
        assert statuses["meta"] == ["ok"] * 9
        assert all("failed" not in own for own in statuses.values())
        for picture in ("cost.png", "lm.png"):
            assert (tmp_path / "new" / picture).stat().st_size > 1000
        printed = capsys.readouterr().out
        assert (tmp_path / "new" / "gpu.txt").read_text() in printed
        for name in ("GradScaler", "tiny Llama", "Muon + AdamW", "ng-gnn", "tbptt-2"):
            assert name in printed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "error: --device cuda: expected a GPU; torch .* finds none. Run this"),
            (
                ["--device", "cpu"],
                "error: --device cpu: expected --tiny; got full shapes",
            ),
        ],
    )
    def test_what_cannot_be_measured(
        self, arguments, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        folder = tmp_path / "new"
        with pytest.raises(SystemExit) as error:
            program.main([*arguments, "--folder", str(folder)])
        assert error.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(message, line)
        assert not folder.exists()

    def test_deadlines(self):
        whole = program.deadlines([*program.SHARES], 100.0, 8)
        assert whole == pytest.approx(
            {"correctness": 196, "cost": 364, "lm": 532, "meta": 580}
        )
        assert program.deadlines(["cost", "lm"], 0.0, 2) == {"cost": 60, "lm": 120}

    def test_a_part_that_ends_leaves_the_others(self, tmp_path, monkeypatch, capsys):
        def in_process(part, session):
            if part == "cost":
                return "ended with exit code -9"
            Records(session, part).attempt({"what": part}, dict)
            return None

        monkeypatch.setattr(program, "in_process", in_process)
        (tmp_path / "cost.json").write_text("of an earlier run")
        options = ["--device", "cpu", "--tiny", "--folder", str(tmp_path)]
        with pytest.raises(SystemExit) as error:
            program.main([*options, "--only", "lm", "cost"])
        assert error.value.code == 1
        found = json.loads((tmp_path / "gpu.json").read_text())
        assert found["cost"] == {
            "machine": {},
            "records": [],
            "ended": "ended with exit code -9",
        }
        assert found["lm"]["records"][0]["status"] == "ok"
        assert (
            "FAILED   cost: the part ended with exit code -9" in capsys.readouterr().out
        )

    @pytest.mark.slow
    def test_processes(self, session, monkeypatch):
        assert in_process("unknown", session) == "ended with exit code 1"
        monkeypatch.setattr("benchmarks.gpu.session.GRACE", 0.0)
        late = Session("cpu", True, session.folder, time.monotonic())
        assert in_process("correctness", late).startswith("stopped")


class TestRecords:
    def test_cases(self, session):
        def fail():
            raise torch.cuda.OutOfMemoryError("no memory\nand more")

        def skip():
            raise Skipped("needs two GPUs")

        records = Records(session, "part")
        records.attempt({"name": "a"}, lambda: {"loss": float("nan")})
        records.attempt({"name": "b"}, fail)
        records.attempt({"name": "c"}, skip)
        written = json.loads((session.folder / "part.json").read_text())
        assert written["machine"]["torch"] == torch.__version__
        a, b, c = written["records"]
        assert (a["status"], a["loss"]) == ("ok", None)
        assert (b["status"], b["note"]) == ("failed", "OutOfMemoryError: no memory")
        assert (c["status"], c["note"]) == ("skipped", "needs two GPUs")

    def test_no_case_begins_after_the_deadline(self, session):
        late = Session("cpu", True, session.folder, time.monotonic() - 1)
        found = Records(late, "part").attempt({}, lambda: pytest.fail("has begun"))
        assert (found["status"], found["note"]) == (
            "skipped",
            "needs 0 s; 0 s are left",
        )

    def test_a_picture_that_fails(self, session, monkeypatch, capsys):
        monkeypatch.setitem(summary.PICTURES, "lm", lambda records, path: 1 / 0)
        summary.draw("lm", [{}], session.folder / "lm.png")
        assert "lm.png': ZeroDivisionError" in capsys.readouterr().err

    def test_summary(self, session):
        records = Records(session, "correctness")
        records.attempt(
            {"weights": "ff", "check": "float64"},
            lambda: correctness.verdict(2e-8, 1e-8),
        )
        found = summary.merged(session.folder, [*program.SHARES], {})
        text, has_failures = summary.summary(found)
        assert has_failures
        assert "FAILED 2e-08" in text
        assert "FAILED   correctness: ff, float64: error 2e-08, limit 1e-08" in text


class TestCorrectness:
    def test_distance(self):
        start, reference = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
        assert correctness.distance(reference, reference, start) == 0
        found = correctness.distance([torch.tensor([3.0, 4.5])], reference, start)
        assert found == pytest.approx(0.1)
        assert correctness.verdict(float("nan"), 1.0)["status"] == "failed"

    @pytest.mark.parametrize("weights", ["default", "ff"])
    def test_a_difference_is_found(self, weights, session, monkeypatch):
        real = correctness.Twin.set_gradients
        made = []

        def set_gradients(twin, number):
            real(twin, number)
            if twin not in made:
                made.append(twin)
            if made.index(twin) % 2:  # the second of a pair
                twin.params[0].grad.view(-1)[0] += 1e-5

        exact = correctness.EVERY_WEIGHTS["float64"]
        assert exact(session, weights)["status"] == "ok"
        monkeypatch.setattr(correctness.Twin, "set_gradients", set_gradients)
        found = exact(session, weights)
        assert (found["status"], found["error"] > 1e-8) == ("failed", True)

    def test_capture(self, session, fake_cuda, monkeypatch):
        """On a CPU: a step is not made in capture, but in every replay."""
        step = correctness.NGOptimizer.step

        def step_or_capture(optimizer):
            if fake_cuda and fake_cuda[-1] == "graph":
                torch.cuda.CUDAGraph.captured = partial(step, optimizer)
            else:
                step(optimizer)

        monkeypatch.setattr(correctness.NGOptimizer, "step", step_or_capture)
        name = "capture, float32 products"
        found = correctness.DEFAULT_ONLY[name](session, "default")
        assert (found["status"], found["error"]) == ("ok", 0)
        networks = 1 + len(TINY_WORKLOADS)
        calls = ["wait", "stream", "wait", "graph", *["replay"] * correctness.REPLAYS]
        assert fake_cuda == calls * networks

    def test_syncs(self, session, fake_cuda):
        assert correctness.has_no_syncs(session, "ff") == {}
        assert fake_cuda == ["error", "default"]

    def test_side_stream(self, session, fake_cuda):
        found = correctness.works_on_a_side_stream(session, "ff")
        assert (found["status"], found["error"]) == ("ok", 0)
        assert fake_cuda == ["wait", "stream", "wait"]

    @pytest.mark.parametrize("name", ["TF32 allowed", "TF32 allowed, new name"])
    def test_full_precision(self, name, session, fake_cuda):
        found = correctness.DEFAULT_ONLY[name](session, "default")
        assert (found["status"], found["error"]) == ("ok", 0)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32

    def test_infinite_gradients(self, session, monkeypatch):
        assert correctness.scales(session, "default")["error"] == 0
        step = torch.amp.GradScaler.step

        def moves(scaler, optimizer):
            step(scaler, optimizer)
            for p in optimizer.param_groups[0]["params"]:
                p.data += 1

        monkeypatch.setattr(torch.amp.GradScaler, "step", moves)
        with pytest.raises(AssertionError, match="infinite gradients moved"):
            correctness.scales(session, "default")


class TestTiming:
    def test_times(self, session, monkeypatch):
        clock = iter(np.cumsum([0, 0.5, 1, 0.1, 1, 0.1, 1, 0.2, 1, 0.3]))
        monkeypatch.setattr(timing, "perf_counter", lambda: float(next(clock)))
        prepared = []
        found = timing.timed(session, lambda: None, lambda: prepared.append(None))
        expected = {"ms": 200, "worst_ms": 300, "steps": 3, "first_s": 0.5}
        assert found == pytest.approx(expected)
        assert len(prepared) == 5

    def test_slow_steps_are_repeated_less_often(self):
        assert timing._repeated(lambda: 4.0, 20, 9.0) == [4.0] * 3
        assert timing._repeated(lambda: 4.0, 20, 0.0) == [4.0]

    def test_kernels(self, session, monkeypatch):
        def event(name, kind, us):
            time_range = SimpleNamespace(elapsed_us=lambda: us)
            return SimpleNamespace(name=name, device_type=kind, time_range=time_range)

        events = [
            event("gemm", DeviceType.CUDA, 3000.0),
            event("gemm", DeviceType.CUDA, 1000.0),
            event("add", DeviceType.CUDA, 500.0),
            event("Memcpy HtoD (Pageable -> Device)", DeviceType.CUDA, 500.0),
            event("cudaLaunchKernel", DeviceType.CPU, 9000.0),
        ]

        @contextmanager
        def profile(activities):
            yield SimpleNamespace(events=lambda: events)

        monkeypatch.setattr(timing, "profile", profile)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        gpu = Session("cuda", True, session.folder, session.deadline)
        steps = []
        found = timing.profiled(gpu, lambda: steps.append(None), 2)
        assert len(steps) == 2
        assert (found["kernels"], found["copies"], found["device_ms"]) == (
            1.5,
            0.5,
            2.5,
        )
        assert next(iter(found["kernel_ms"].items())) == ("gemm", 2.0)

    def test_transient_memory(self, session, monkeypatch):
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "synchronize", lambda: None)
        monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(cuda, "memory_allocated", lambda: 100)
        monkeypatch.setattr(cuda, "max_memory_allocated", lambda: 130)
        gpu = Session("cuda", True, session.folder, session.deadline)
        assert timing.transient_bytes(gpu, lambda: None) == 30

    def test_state(self, session):
        model = nn.Linear(3, 5)
        (adamw,) = optimizers.adamw(model)
        model(torch.ones(2, 3)).sum().backward()
        adamw.step()
        kept = cost_model.state_bytes([adamw], session.device)
        assert kept == 2 * 4 * 20 + 2 * 4  # and the number of steps of both parameters


class TestCost:
    def test_hidden_matrices(self):
        model = Gpt(64, 8, 16, 2, 2)
        matrices, others = optimizers.hidden_matrices(model)
        assert len(matrices) == 8
        assert len(matrices) + len(others) == len(list(model.parameters()))
        assert {p.shape for p in others if p.ndim == 2} == {(64, 16), (8, 16)}

    @pytest.mark.filterwarnings("ignore")
    def test_looks_at_the_graph(self, session, monkeypatch):
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        (optimizer,) = made = optimizers.OPTIMIZERS["ng-gnn"](trained.model)
        stepper = cost.Stepper(trained, made)
        assert stepper.graph_every == optimizer.learned.metanet.graph_every > 1
        looks = []
        for prepare in (stepper.prepare, *[stepper.prepare] * 3, stepper.prepare_look):
            prepare()
            counts = [int(record["step"]) for record in optimizer.state.values()]
            looks.append(not counts or counts[0] % stepper.graph_every == 0)
            stepper.step()
        assert looks == [True, False, False, False, True]

    def test_gradients_are_put_back(self, session):
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        stepper = cost.Stepper(trained, optimizers.adamw(trained.model))
        grads = [p.grad for p in trained.model.parameters()]
        for p in trained.model.parameters():
            p.grad = None
        stepper.whole(2)
        found = [p.grad for p in trained.model.parameters()]
        assert all(a is b for a, b in zip(grads, found, strict=True))

    def test_eager_steps_have_no_kernels(self, session, monkeypatch):
        asked = []

        def make(model):
            asked.append(devices.has_triton(torch.device("cuda")))
            return optimizers.adamw(model)

        monkeypatch.setattr(devices, "find_spec", lambda name: name)
        devices.has_triton.cache_clear()
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        own = {"default, eager": make, "default": make}
        monkeypatch.setattr(cost, "OPTIMIZERS", own)
        for name in own:
            cost.optimizer_step(session, trained, name)
        devices.has_triton.cache_clear()
        assert asked == [False, True]
