"""On small files that are made here, as their authors' programs write them."""

import json
import pickle
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tasks.sources import published_inrs
from tasks.sources.published_cnns import read_cnn_zoo
from tasks.sources.published_inrs import read_dwsnets, read_nfn
from tests.tasks.stacks import outputs_of


def linears(seed, *widths):
    torch.manual_seed(seed)
    return [nn.Linear(a, b) for a, b in pairwise(widths)]


def state(layers, pattern):
    """As torch saves it; pattern: of names, with the layer's number."""
    found = OrderedDict()
    for number, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            found[f"{pattern(number)}.{kind}"] = getattr(layer, kind).detach()
    return found


class TestDwsnets:
    @pytest.fixture
    def source(self, tmp_path):
        splits = {}
        for split, labels in {
            "train": ["7", "1"],
            "val": ["3"],
            "test": ["0"],
        }.items():
            paths = [
                f"inrs/{split}_{number}/model_final.pth"
                for number in range(len(labels))
            ]
            for number, path in enumerate(paths):
                (tmp_path / path).parent.mkdir(parents=True)
                torch.save(
                    state(linears(number, 2, 5, 4, 1), lambda k: f"seq.{k}"),
                    tmp_path / path,
                )
            splits[split] = {"path": paths, "label": labels}
        (tmp_path / "splits.json").write_text(json.dumps(splits))
        return tmp_path / "splits.json"

    def test_networks_say_what_theirs_do(self, source):
        first, second = read_dwsnets(source, "train")
        points = torch.rand(6, 2)
        one, two, three = linears(1, 2, 5, 4, 1)
        expected = three(torch.sin(30 * two(torch.sin(30 * one(points)))))
        torch.testing.assert_close(
            outputs_of(second, points)[0], expected, atol=1e-4, rtol=1e-4
        )
        assert [
            first.columns["label"].item(),
            second.columns["label"].item(),
        ] == [7, 1]
        assert first.architecture == {"kind": "siren", "widths": [2, 5, 4, 1]}

    def test_labels_may_be_in_the_files(self, source):
        splits = json.loads(source.read_text())
        (path,) = splits["test"]["path"]
        values = torch.load(source.parent / path, weights_only=True)
        torch.save({**values, "label": 4}, source.parent / path)
        source.write_text(
            json.dumps({"test": [path], "train": splits["train"]["path"]})
        )
        (found,) = read_dwsnets(source, "test")
        assert found.columns["label"].tolist() == [4]
        with pytest.raises(
            ValueError,
            match=r"train_0/model_final.pth': label: expected a value; got none",
        ):
            next(read_dwsnets(source, "train"))

    def test_bad_files(self, source):
        path = source.parent / "inrs/test_0/model_final.pth"
        values = torch.load(path, weights_only=True)
        torch.save({**values, "seq.1.bias": torch.zeros(3)}, path)
        with pytest.raises(
            ValueError,
            match=r"final.pth': layers.1.bias: expected shape \(4,\); got \(3,\)",
        ):
            next(read_dwsnets(source, "test"))
        torch.save({**values, "seq.1.bias": torch.full((4,), torch.nan)}, path)
        with pytest.raises(
            ValueError,
            match=r"final.pth': layers.1.bias: expected finite numbers; got others",
        ):
            next(read_dwsnets(source, "test"))
        for odd, told in {
            "seq.0.bias": (3, "seq.0.bias: expected a tensor .*; got int"),
            "seq.1.bias": (
                torch.zeros(4, dtype=torch.complex64),
                "seq.1.bias: expected a tensor of real numbers; got .*complex",
            ),
            3: (0, "expected names; got 3"),
        }.items():
            torch.save({**values, odd: told[0]}, path)
            with pytest.raises(ValueError, match=f"final.pth': {told[1]}"):
                next(read_dwsnets(source, "test"))
        source.write_text(json.dumps({"train": {"path": []}}))
        with pytest.raises(
            ValueError,
            match=r"splits.json': test: expected a split of this name; got none",
        ):
            next(read_dwsnets(source, "test"))
        source.write_text("{")
        with pytest.raises(
            ValueError, match=r"splits.json': expected JSON; got: Expecting"
        ):
            next(read_dwsnets(source, "test"))

    @pytest.mark.parametrize(
        "entry, told",
        [
            ({"path": [1], "label": [1]}, "path: expected names .*; got 1"),
            ({"path": ["a"], "label": 1}, "label: expected a list; got 1"),
            ({"path": "a", "label": [1]}, "path: expected a list; got 'a'"),
        ],
    )
    def test_bad_splits(self, source, entry, told):
        source.write_text(json.dumps({"test": entry}))
        with pytest.raises(ValueError, match=f"splits.json': {told}"):
            next(read_dwsnets(source, "test"))

    @pytest.mark.parametrize("label", ["x", None, [], -1, float("nan")])
    def test_bad_labels(self, source, label):
        path = source.parent / "inrs/test_0/model_final.pth"
        values = torch.load(path, weights_only=True)
        torch.save({**values, "label": label}, path)
        entry = ["inrs/test_0/model_final.pth"]
        source.write_text(json.dumps({"test": entry}))
        with pytest.raises(
            ValueError, match="final.pth': label: expected a number from 0"
        ):
            next(read_dwsnets(source, "test"))

    @pytest.mark.parametrize(
        "contents",
        [
            b"",
            b"hello world",
            b"<html>",
            b"\x80\x02.",
            b"\x80\x02h\x05.",
            b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        ],
    )
    def test_what_is_no_checkpoint(self, source, contents):
        path = source.parent / "inrs/test_0/model_final.pth"
        path.write_bytes(contents)
        with pytest.raises(
            ValueError, match="final.pth': expected tensors and plain values"
        ):
            next(read_dwsnets(source, "test"))


class TestNfn:
    @pytest.fixture
    def source(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            published_inrs, "NFN_HELD_OUT", {"validation": 1, "test": 2}
        )
        for number in range(12):
            layers = linears(number, 2, 5, 4, 3)
            values = state(layers, lambda k: "net.2" if k == 2 else f"net.{k}.linear")
            folder = tmp_path / f"randinit_test_{number % 10}s"
            folder.mkdir(exist_ok=True)
            torch.save(values, folder / f"net{number}.pth")
        return tmp_path

    def test_splits_are_of_indices_in_their_order(self, source):
        found = {
            split: list(read_nfn(source, split))
            for split in ("train", "validation", "test")
        }
        indices = {
            split: [some.columns["index"].item() for some in own]
            for split, own in found.items()
        }
        assert indices == {
            "train": list(range(9)),
            "validation": [9],
            "test": [10, 11],
        }
        assert [some.columns["label"].item() for some in found["test"]] == [
            0,
            1,
        ]

    def test_an_image_is_the_output_plus_a_half(self, source):
        (*_, last) = read_nfn(source, "test")
        points = torch.rand(6, 2)
        one, two, three = linears(11, 2, 5, 4, 3)
        image = three(torch.sin(30 * two(torch.sin(30 * one(points)))))  # in [-1, 1]
        expected = (image + 1) / 2
        torch.testing.assert_close(
            outputs_of(last, points)[0] + 0.5, expected, atol=1e-4, rtol=1e-4
        )

    def test_bad_files(self, source):
        (source / "other").mkdir()
        odd = source / "other" / "net3.pth"
        torch.save({}, odd)
        with pytest.raises(
            ValueError,
            match=r"other/net3.pth': name: expected NAME_<label>s/net<index>.pth",
        ):
            next(read_nfn(source, "train"))
        odd.unlink()
        again = source / "randinit_test_0s" / "net3.pth"
        torch.save({}, again)
        with pytest.raises(
            ValueError,
            match=r"3s/net3.pth': name: .*; got 3, as '.*0s/net3.pth'",
        ):
            next(read_nfn(source, "train"))
        again.unlink()
        torch.save({"epoch": 1}, source / "randinit_test_0s" / "net0.pth")
        with pytest.raises(
            ValueError, match="net0.pth': epoch: expected a tensor .*; got int"
        ):
            next(read_nfn(source, "train"))
        torch.save(
            {"net.0.weight": torch.zeros(3)},
            source / "randinit_test_0s" / "net0.pth",
        )
        with pytest.raises(
            ValueError,
            match=r"net0.pth': expected weights of linear layers; got layers.0.weight",
        ):
            next(read_nfn(source, "train"))
        with pytest.raises(ValueError, match="expected 4 networks or more; got 0"):
            next(read_nfn(source / "nothing", "train"))


class Code:
    """What unpickling would run."""

    def __reduce__(self):
        return (print, ("was run",))


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    path = tmp_path / "a.pth"
    (tmp_path / "splits.json").write_text(
        json.dumps({"test": {"path": ["a.pth"], "label": [1]}})
    )
    torch.save({"seq.0.weight": Code()}, path)
    message = r"a.pth': expected tensors and plain values of torch.save; got: "
    with pytest.raises(ValueError, match=message):
        next(read_dwsnets(tmp_path / "splits.json", "test"))
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(ValueError, match=message):
        next(read_dwsnets(tmp_path / "splits.json", "test"))
    path.unlink()
    with pytest.raises(ValueError, match=message):
        next(read_dwsnets(tmp_path / "splits.json", "test"))
    np.save(tmp_path / "weights.npy", np.array([Code()], dtype=object))
    with pytest.raises(
        ValueError, match=r"weights.npy': expected an array of numbers; got: "
    ):
        next(read_cnn_zoo(tmp_path, "test"))
    assert "was run" not in capsys.readouterr().out
