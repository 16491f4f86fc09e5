import email
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from benchmarks.gpu import corpus, lm
from benchmarks.gpu.session import Skipped


class TestLanguageModel:
    @pytest.mark.parametrize("name", ["BPE", "bytes"])
    def test_corpus(self, name, session, monkeypatch):
        if name == "BPE":
            pytest.importorskip("tokenizers")
        monkeypatch.setattr(corpus, "find_spec", lambda module: name == "BPE")
        folders = {"stdlib": Path(email.__file__).parent, "purelib": session.folder}
        monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: folders)
        first = corpus.load_corpus(session, 5000, 300)
        assert first.tokenizer == name
        assert first.vocabulary == (300 if name == "BPE" else 256)
        assert len(first.train) == 5000
        assert first.train.dtype == np.uint16
        assert max(first.train.max(), first.validation.max()) < first.vocabulary
        assert len(first.validation) > 0
        encoded_again = corpus._tokens(5000, 300 if name == "BPE" else None)
        monkeypatch.setattr(corpus, "_tokens", None)  # read from the cache
        second = corpus.load_corpus(session, 5000, 300)
        for a, b in zip(first[:2], encoded_again, strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(first.train, second.train)

    def test_windows(self, session):
        tokens = np.arange(200, dtype=np.uint16)
        size = lm.TINY._replace(length=4, batch=3, windows=5)
        data = lm.Data(session, size, corpus.Corpus(tokens, tokens, 256, "bytes"))
        inputs, targets = data.batch(data.starts(7)[2])
        assert inputs.shape == targets.shape == (3, 4)
        assert torch.equal(inputs + 1, targets)
        assert torch.equal(data.starts(7)[:3], data.starts(3))
        held_out = data.validation_batches()
        assert [len(x) for x, _ in held_out] == [3, 2]
        assert held_out[-1][1][-1, -1] == 199

    def test_run_is_skipped_if_it_does_not_fit(self, session, monkeypatch):
        tokens = np.arange(2000, dtype=np.uint16) % 50
        data = lm.Data(session, lm.TINY, corpus.Corpus(tokens, tokens, 50, "bytes"))
        record = lm.Training(session, data, lm.TINY_RUNS[1]).finish()
        assert record["curve"]["steps"] == list(range(2, 21, 2))
        assert record["validation"] < record["curve"]["loss"][0]
        training = lm.Training(session, data, lm.TINY_RUNS[1])
        monkeypatch.setattr(training, "train", lambda first, last: 100.0)
        with pytest.raises(Skipped, match="needs 900 s"):
            training.finish()
