import json
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import cost, optimizers, summary, timing
from benchmarks.gpu.session import Records, Session, Skipped, in_process
from benchmarks.launches import state_bytes
from benchmarks.shapes import TINY_WORKLOADS, Gpt


def needs_gpu(test):
    is_missing = not torch.cuda.is_available()
    test = pytest.mark.skipif(is_missing, reason="needs a CUDA device")(test)
    # of torch's compiler and profiler, which differ between versions
    test = pytest.mark.filterwarnings("default")(test)
    return pytest.mark.gpu(test)


class TestProgram:
    @pytest.mark.thorough
    def test_everything_on_a_cpu(self, tmp_path, capsys):
        arguments = ["--device", "cpu", "--tiny", "--folder", str(tmp_path / "new")]
        program.main([*arguments, "--minutes", "5"])  # takes one
        contents = json.loads((tmp_path / "new" / "gpu.json").read_text())
        assert list(contents) == ["cost", "lm"]
        assert all(part["machine"]["device"] == "cpu" for part in contents.values())
        statuses = {
            name: [record["status"] for record in part["records"]]
            for name, part in contents.items()
        }
        assert statuses["cost"].count("ok") >= 8 * len(TINY_WORKLOADS)
        assert statuses["lm"] == ["ok"] * 5
        assert "failed" not in statuses["cost"]
        printed = capsys.readouterr().out
        assert (tmp_path / "new" / "gpu.txt").read_text() in printed
        for name in ("tiny Llama", "Muon + AdamW", "ng-gnn"):
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
    def test_nothing_can_be_measured(
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
        ends = program.deadlines(["cost", "lm"], 100.0, 8)
        assert ends == pytest.approx({"cost": 340, "lm": 580})
        assert program.deadlines(["lm"], 0.0, 2) == {"lm": 120}

    def test_other_parts_run_after_one_has_ended(self, tmp_path, monkeypatch, capsys):
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
        contents = json.loads((tmp_path / "gpu.json").read_text())
        ended = "ended with exit code -9"
        assert contents["cost"] == {"machine": {}, "records": [], "ended": ended}
        assert contents["lm"]["records"][0]["status"] == "ok"
        assert f"FAILED   cost: the part {ended}" in capsys.readouterr().out

    @pytest.mark.slow
    def test_processes(self, session, monkeypatch):
        assert in_process("unknown", session) == "ended with exit code 1"
        monkeypatch.setattr("benchmarks.gpu.session.GRACE", 0.0)
        late = Session("cpu", True, session.folder, time.monotonic())
        assert in_process("cost", late).startswith("stopped")


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
        record = Records(late, "part").attempt({}, lambda: pytest.fail("has begun"))
        expected = "skipped", "needs 0 s; 0 s are left"
        assert (record["status"], record["note"]) == expected

    def test_summary(self, session):
        def fail():
            raise ValueError("no such shape")

        records = Records(session, "lm")
        records.attempt({"what": "run", "optimizer": "AdamW", "lr": 0.1}, fail)
        contents = summary.merged(session.folder, ["cost", "lm"], {})
        text, has_failures = summary.summary(contents)
        assert has_failures
        assert "FAILED   lm: AdamW, run, 0.1: ValueError: no such shape" in text


class TestTiming:
    def test_times(self, session, monkeypatch):
        clock = iter(np.cumsum([0, 0.5, 1, 0.1, 1, 0.1, 1, 0.2, 1, 0.3]))
        monkeypatch.setattr(timing, "perf_counter", lambda: float(next(clock)))
        prepared = []
        record = timing.timed(session, lambda: None, lambda: prepared.append(None))
        expected = {"ms": 200, "worst_ms": 300, "steps": 3, "first_s": 0.5}
        assert record == pytest.approx(expected)
        assert len(prepared) == 5

    def test_slow_steps_are_repeated_less_often(self):
        assert timing._repeated(lambda: 4.0, 20, 9.0) == [4.0] * 3
        assert timing._repeated(lambda: 4.0, 20, 0.0) == [4.0]

    @needs_gpu
    def test_kernels_and_memory_of_a_gpu(self, session):
        gpu = Session("cuda", True, session.folder, session.deadline)
        x = torch.ones(1 << 20, device="cuda")  # 4 MiB
        y = torch.empty_like(x)

        def step():
            torch.add(x, 1, out=y)
            y.copy_(x.exp())

        record = timing.profiled(gpu, step, 2)
        assert (record["kernels"], record["copies"]) == (2, 1)
        assert record["device_ms"] == pytest.approx(sum(record["kernel_ms"].values()))
        assert timing.transient_bytes(gpu, step) == 4 * x.numel()

    def test_state(self, session):
        model = nn.Linear(3, 5)
        (adamw,) = optimizers.adamw(model)
        model(torch.ones(2, 3)).sum().backward()
        adamw.step()
        # two moments, and the number of steps of each parameter
        assert state_bytes([adamw], session.device) == 2 * 4 * 20 + 2 * 4


class TestCost:
    def test_hidden_matrices(self):
        model = Gpt(64, 8, 16, 2, 2)
        matrices, others = optimizers.hidden_matrices(model)
        assert len(matrices) == 8
        assert len(matrices) + len(others) == len(list(model.parameters()))
        assert {p.shape for p in others if p.ndim == 2} == {(64, 16), (8, 16)}

    @pytest.mark.filterwarnings("ignore")
    def test_some_steps_read_the_graph(self, session):
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        (optimizer,) = made = optimizers.OPTIMIZERS["ng-gnn"](trained.model)
        stepper = cost.Stepper(trained, made)
        assert stepper.graph_every == optimizer.rule.metanet.graph_every > 1
        looks = []
        for prepare in (stepper.prepare, *[stepper.prepare] * 3, stepper.prepare_look):
            prepare()
            counts = [int(record["step"]) for record in optimizer.state.values()]
            looks.append(not counts or counts[0] % stepper.graph_every == 0)
            stepper.step()
        assert looks == [True, False, False, False, True]

    def test_gradients_are_restored(self, session):
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        stepper = cost.Stepper(trained, optimizers.adamw(trained.model))
        grads = [p.grad for p in trained.model.parameters()]
        for p in trained.model.parameters():
            p.grad = None
        stepper.whole(2)
        restored = [p.grad for p in trained.model.parameters()]
        assert [*map(id, grads)] == [*map(id, restored)]

    @needs_gpu
    def test_eager_steps_have_more_kernels(self, session):
        gpu = Session("cuda", True, session.folder, session.deadline)
        trained = cost.Trained(gpu, TINY_WORKLOADS["tiny CNN"])
        fused = cost.optimizer_step(gpu, trained, "default")
        eager = cost.optimizer_step(gpu, trained, "default, eager")
        assert eager["kernels"] > fused["kernels"] > 0
