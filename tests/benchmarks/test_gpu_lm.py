import email
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from benchmarks.gpu import images, ledger, lm
from benchmarks.gpu.session import Cut, Skipped
from benchmarks.gpu.training import Run, Training
from harness.image_datasets import ImageDataset, Split

RUNS = [
    Run("gpt-256", name, lr, 300)
    for name, lr in (("default", 1.0), ("AdamW", 0.01), ("Muon + AdamW", 0.01))
]


def text(session):
    tokens = np.arange(2000, dtype=np.uint16) % 50
    return lm.Text(session, lm.TINY, lm.Corpus(tokens, tokens, 50, "bytes"))


class TestData:
    @pytest.mark.parametrize("name", ["BPE", "bytes"])
    @pytest.mark.parametrize("files", [lm.SOURCES, lm.HEADERS])
    def test_corpus(self, name, files, session, monkeypatch):
        if name == "BPE":
            pytest.importorskip("tokenizers")
        monkeypatch.setattr(lm, "find_spec", lambda module: name == "BPE")
        folders = {"stdlib": Path(email.__file__).parent, "purelib": session.folder}
        monkeypatch.setattr(lm.sysconfig, "get_paths", lambda: folders)
        for number in range(60):
            (session.folder / f"{number}.h").write_text(f"int f{number}();\n" * 50)
        first = lm.load_corpus(session, 5000, 300, files)
        assert first.tokenizer == name
        assert first.vocabulary == (300 if name == "BPE" else 256)
        assert len(first.train) == 5000
        assert first.train.dtype == np.uint16
        assert max(first.train.max(), first.validation.max()) < first.vocabulary
        assert len(first.validation) > 0
        encode = lm._bytes
        if name == "BPE":
            encode = lm._bpe(session.folder / "tokens", 300, 20_000)
        encoded_again = lm._tokens(5000, encode, files)
        monkeypatch.setattr(lm, "_tokens", None)  # read from the cache
        second = lm.load_corpus(session, 5000, 300, files)
        for a, b in zip(first[:2], encoded_again, strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(first.train, second.train)
        # sources have more characters than these headers
        is_sources = files == lm.SOURCES
        assert (len(np.unique(first.train)) > 50) == is_sources

    def test_windows(self, session):
        tokens = np.arange(200, dtype=np.uint16)
        size = lm.TINY._replace(length=4, batch=3, windows=5)
        data = lm.Text(session, size, lm.Corpus(tokens, tokens, 256, "bytes"))
        inputs, targets = data.batch(data.order(7)[2])
        assert inputs.shape == targets.shape == (3, 4)
        assert torch.equal(inputs + 1, targets)
        assert torch.equal(data.order(7)[:3], data.order(3))
        assert not torch.equal(data.order(3), data.order(3, seed=1))
        held_out = data.validation_batches()
        assert [len(x) for x, _ in held_out] == [3, 2]
        assert held_out[-1][1][-1, -1] == 199

    def test_images_need_their_file(self, session):
        for folder in (None, session.folder):
            with pytest.raises(Skipped, match=r"needs cifar10.safetensors; .* --data"):
                images.Images(replace(session, data=folder), "vit")

    def test_half_of_the_images_are_flipped(self, session, monkeypatch):
        pixels = torch.randint(256, (500, 3, 4, 4), dtype=torch.uint8)
        split = Split(pixels, torch.randint(10, (500,)), (0.5,) * 3, (0.2,) * 3)
        whole = ImageDataset(split, split, split)
        monkeypatch.setattr(images, "load_dataset", lambda name, folder: whole)
        (session.folder / "cifar10.safetensors").touch()
        data = images.Images(replace(session, data=session.folder), "vit")
        numbers = data.order(3)[1]
        flipped, labels = data.batch(numbers)
        original, expected = data._train.batch(numbers)
        assert torch.equal(labels, expected)
        same = (flipped == original).flatten(1).all(1)
        mirrored = (flipped == original.flip(-1)).flatten(1).all(1)
        assert (same | mirrored).all()
        assert 40 < same.sum() < 90
        assert torch.equal(data.batch(numbers)[0], flipped)


class TestTraining:
    @pytest.mark.parametrize("run", RUNS, ids=lambda run: run.optimizer)
    def test_a_cut_run_goes_on(self, run, session, monkeypatch):
        path = session.folder / "cut.pt"
        record = Training(session, text(session), run).finish(path)
        assert record["curve"]["steps"] == list(range(2, 21, 2))
        assert record["validation"] < record["curve"]["loss"][0]
        assert 0 < record["accuracy"] <= 1
        training = Training(session, text(session), run)
        left = iter([1.0] * 7 + [0.0] * 2)
        with monkeypatch.context() as patch:
            patch.setattr(type(session), "left", lambda self: next(left))
            with pytest.raises(Cut, match="7 of 20 steps"):
                training.finish(path)
        resumed = Training(session, text(session), run).finish(path)
        assert not path.exists()
        assert resumed["losses"] == record["losses"]
        assert resumed["curve"]["steps"] == list(range(2, 21, 2))
        assert resumed["validation"] == record["validation"]


class TestLedger:
    def test_names_are_unique(self):
        assert len(ledger.RUNS) == sum(map(len, ledger.GROUPS.values()))
        assert ledger.names()[0] == "pytest -m gpu"

    def test_progress(self, session, monkeypatch, capsys):
        """Failed and measured runs are not repeated, cut and skipped ones are."""
        path, done = session.folder / "gpu.json", []
        path.write_text('{"cost": {}}')
        statuses = dict(
            zip(ledger.names(), ["ok", "failed", "cut", "skipped"], strict=False)
        )
        for name, status in statuses.items():
            ledger.write(path, name, {"status": status, "note": "no reason"})

        def in_process(work, session):
            done.append(work.args[0])
            if len(done) == 2:
                return "ended with exit code -9"
            ledger.write(path, work.args[0], {"status": "ok", "validation": 2.0})
            left.pop()
            return None

        left = [30, 30]
        monkeypatch.setattr(ledger, "in_process", in_process)
        monkeypatch.setattr(type(session), "left", lambda self: sum(left))
        assert ledger.make_progress(session, path)
        assert done == ledger.names()[2:5]
        results = ledger.results(path)
        assert [results[name]["status"] for name in done] == ["ok", "failed", "ok"]
        assert '"cost": {}' in path.read_text()
        printed = capsys.readouterr().err
        assert f"{done[1]}: failed: the process ended with exit code -9" in printed
        assert f"{done[2]}: ok: 2.0" in printed

    def test_best_rate(self):
        losses = dict(zip(ledger.RATES["AdamW"], (3.0, 2.5, 2.0, None), strict=True))
        measured = {}
        for lr, loss in losses.items():
            with pytest.raises(Skipped, match="needs all rates of AdamW on gpt-256"):
                ledger.best_rate("AdamW", measured)
            run = Run("gpt-256", "AdamW", lr, 300)
            measured[str(run)] = {"status": "ok", "validation": loss}
        assert ledger.best_rate("AdamW", measured) == 0.002

    def test_results(self, session, monkeypatch):
        path = session.folder / "gpu.json"
        monkeypatch.setattr(ledger, "data_of", lambda name, session: text(session))
        names = [
            "gpt-512, AdamW, 0.001, 1,000 steps",
            "headers, AdamW, 0.001, 300 steps",
            "gpt-256, default, 2, 300 steps",
        ]
        for name in names:
            ledger.measure(name, path, session)
        results = ledger.results(path)
        assert all(results[name]["status"] == "ok" for name in names)
        scratch, fine_tuned, _ = (results[name]["curve"]["loss"][0] for name in names)
        assert fine_tuned < scratch
        report = ledger.report(results)
        assert "| GPTs of width 256 to 2,048, 300 steps " in report
        assert "| 1 of 26 " in report
        assert "| gpt-256, default, 2, 300 steps " in report

    def test_widths_of_full_size(self, session, monkeypatch):
        monkeypatch.setattr(ledger, "check_installed", lambda module: None)
        monkeypatch.setattr(ledger, "load_corpus", lambda *args: args[1:])
        monkeypatch.setattr(ledger, "Text", lambda session, size, corpus: size)
        monkeypatch.setattr(ledger, "Images", lambda session, name: name)
        full = replace(session, tiny=False)
        for run in (run for runs in ledger.GROUPS.values() for run in runs):
            size = ledger.data_of(run.data, full)
            if run.data.startswith("gpt-") and run.data != "gpt-2":
                assert size.width == int(run.data[4:])
                assert size.width == 64 * size.heads


def test_no_run_starts_after_the_deadline(session):
    late = replace(session, deadline=time.monotonic() - 1)
    assert not ledger.make_progress(late, session.folder / "gpu.json")


def test_the_page_has_the_state_of_the_list():
    page = (ledger.ROOT / "docs/results/gpu.md").read_text()
    assert ledger.report(ledger.results(ledger.RECORD)) in page
    index = (ledger.ROOT / "docs/results/index.md").read_text()
    assert f"a list of {len(ledger.names())} runs is open" in index
