import json
import re
import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import cost, ledger, optimizers
from benchmarks.gpu.session import Records, Session, Skipped, in_process
from benchmarks.launches import state_bytes
from benchmarks.shapes import TINY_WORKLOADS


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
        content = json.loads((tmp_path / "new" / "cost.json").read_text())
        assert content["machine"]["device"] == "cpu"
        statuses = [record["status"] for record in content["records"]]
        assert statuses.count("ok") >= 8 * len(TINY_WORKLOADS)
        assert "failed" not in statuses
        printed = capsys.readouterr().out
        for name in ("tiny Llama", "Muon + AdamW", "ng-gnn"):
            assert name in printed

    @pytest.mark.slow
    def test_next_runs(self, tmp_path, capsys):
        record = tmp_path / "gpu.json"
        for name in ledger.names():
            status = "skipped" if name == "pytest -m gpu" else "ok"
            ledger.write(record, name, {"status": status})
        options = ["--device", "cpu", "--tiny", "--folder", str(tmp_path), "--next"]
        program.main([*options, "--record", str(record)])
        printed = capsys.readouterr()
        assert "pytest -m gpu: skipped: all tests were skipped" in printed.err
        assert "| 26 of 26 " in printed.out
        program.main(["--list", "--record", str(record)])
        assert capsys.readouterr().out == printed.out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "error: --device cuda: expected a GPU; torch .* finds none. Run this"),
            (
                ["--device", "cpu"],
                "error: --device cpu: expected --tiny; got full shapes",
            ),
            (
                ["--device", "cpu", "--tiny", "--next"],
                "error: --tiny: expected --record with another file; got the project's",
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

    def test_a_process_that_ends_early(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(program, "in_process", lambda *_: "ended with exit code -9")
        (tmp_path / "cost.json").write_text("of an earlier run")
        options = ["--device", "cpu", "--tiny", "--folder", str(tmp_path)]
        with pytest.raises(SystemExit) as error:
            program.main(options)
        assert error.value.code == 1
        printed = capsys.readouterr().out
        assert "FAILED   the process ended with exit code -9" in printed

    @pytest.mark.thorough
    def test_processes(self, session, monkeypatch):
        assert in_process(fails, session) == "ended with exit code 1"
        monkeypatch.setattr("benchmarks.gpu.session.GRACE", 0.0)
        late = Session("cpu", True, session.folder, time.monotonic())
        assert in_process(cost.run, late).startswith("stopped")


def fails(session):
    raise ValueError


class TestRecords:
    def test_cases(self, session):
        def fail():
            raise torch.cuda.OutOfMemoryError("no memory\nand more")

        def skip():
            raise Skipped("needs two GPUs")

        records = Records(session)
        records.attempt({"name": "a"}, lambda: {"loss": float("nan")})
        records.attempt({"name": "b"}, fail)
        records.attempt({"name": "c"}, skip)
        written = json.loads((session.folder / "cost.json").read_text())
        assert written["machine"]["torch"] == torch.__version__
        a, b, c = written["records"]
        assert (a["status"], a["loss"]) == ("ok", None)
        assert (b["status"], b["note"]) == ("failed", "OutOfMemoryError: no memory")
        assert (c["status"], c["note"]) == ("skipped", "needs two GPUs")

    def test_no_case_begins_after_the_deadline(self, session):
        late = Session("cpu", True, session.folder, time.monotonic() - 1)
        record = Records(late).attempt({}, lambda: pytest.fail("has begun"))
        expected = "skipped", "no time was left"
        assert (record["status"], record["note"]) == expected

    def test_summary(self, session):
        def fail():
            raise ValueError("no such shape")

        records = Records(session)
        records.attempt({"network": "a CNN", "optimizer": "AdamW"}, fail)
        content = json.loads(records.path.read_text())
        text, has_failures = program.summary(content, ended=None)
        assert has_failures
        assert "FAILED   a CNN, AdamW: ValueError: no such shape" in text


class TestTiming:
    def test_times(self, session, monkeypatch):
        clock = iter(np.cumsum([0, 0.5, 1, 0.1, 1, 0.1, 1, 0.2, 1, 0.3]))
        monkeypatch.setattr(cost, "perf_counter", lambda: float(next(clock)))
        prepared = []
        record = cost.timed(session, lambda: None, lambda: prepared.append(None))
        expected = {"ms": 200, "worst_ms": 300, "steps": 3, "first_s": 0.5}
        assert record == pytest.approx(expected)
        assert len(prepared) == 5

    def test_slow_steps_are_repeated_less_often(self):
        assert cost._repeated(lambda: 4.0, 20, 9.0) == [4.0] * 3
        assert cost._repeated(lambda: 4.0, 20, 0.0) == [4.0]

    @needs_gpu
    def test_kernels_and_memory_of_a_gpu(self, session):
        gpu = Session("cuda", True, session.folder, session.deadline)
        x = torch.ones(1 << 20, device="cuda")  # 4 MiB
        y = torch.empty_like(x)

        def step():
            torch.add(x, 1, out=y)
            y.copy_(x.exp())

        record = cost.profiled(gpu, step, 2)
        assert (record["kernels"], record["copies"]) == (2, 1)
        assert record["device_ms"] > 0
        assert cost.transient_bytes(gpu, step) == 4 * x.numel()

    def test_state(self, session):
        model = nn.Linear(3, 5)
        adamw = optimizers.adamw(model)
        model(torch.ones(2, 3)).sum().backward()
        adamw.step()
        # two moments, and the number of steps of each parameter
        assert state_bytes(adamw, session.device) == 2 * 4 * 20 + 2 * 4


class TestCost:
    @pytest.mark.parametrize(("network", "count"), [("tiny GPT", 8), ("tiny CNN", 2)])
    def test_muon_trains_hidden_matrices_and_kernels(self, network, count, session):
        trained = cost.Trained(session, TINY_WORKLOADS[network])
        muon = optimizers.muon(trained.model)
        muon.step()
        matrices, others = (part.state for part in muon.parts)
        assert len(matrices) == count
        params = list(trained.model.parameters())
        assert len(others) == len(params) - count
        # momenta of all, second moments and steps of others
        numels = trained.numel + sum(p.numel() + 1 for p in others)
        assert state_bytes(muon, session.device) == 4 * numels

    @pytest.mark.filterwarnings("ignore")
    def test_some_steps_read_the_graph(self, session):
        trained = cost.Trained(session, TINY_WORKLOADS["tiny CNN"])
        optimizer = optimizers.OPTIMIZERS["ng-gnn"](trained.model)
        stepper = cost.Stepper(trained, optimizer)
        assert stepper.graph_every == optimizer.rule.metanet.graph_every > 1
        looks = []
        for prepare in (stepper.prepare, *[stepper.prepare] * 3, stepper.prepare_look):
            prepare()
            counts = [int(record["step"]) for record in optimizer.state.values()]
            looks.append(not counts or counts[0] % stepper.graph_every == 0)
            stepper.optimizer.step()
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
