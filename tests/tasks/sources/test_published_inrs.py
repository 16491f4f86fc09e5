"""On small files that are made here, as their authors' programs write them."""

import json
import pickle
from collections import OrderedDict
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tasks.sources import published_inrs
from tasks.sources.published_cnns import read_cnn_zoo
from tasks.sources.published_inrs import read_dwsnets, read_nfn
from tests.tasks.sources.published import refused, write_nfn
from tests.tasks.stacks import outputs_of

refused_dwsnets = partial(refused, read_dwsnets)
refused_nfn = partial(refused, read_nfn)
TEST_FILE = "inrs/test_0/model_final.pth"


def change(source, changes=(), **labels):
    """Changes values in the file of the test split of DWSNets."""
    path = source.parent / TEST_FILE
    torch.save({**torch.load(path, weights_only=True), **dict(changes), **labels}, path)


def linears(seed, *widths):
    torch.manual_seed(seed)
    return [nn.Linear(a, b) for a, b in pairwise(widths)]


def state(layers, pattern):
    """As torch saves it; pattern: of names, with the layer's number."""
    return OrderedDict(
        (f"{pattern(number)}.{kind}", getattr(layer, kind).detach())
        for number, layer in enumerate(layers)
        for kind in ("weight", "bias")
    )


class TestDwsnets:
    @pytest.fixture
    def source(self, tmp_path):
        splits = {}
        labels = {"train": ["7", "1"], "val": ["3"], "test": ["0"]}
        for split in labels:
            paths = []
            for number in range(len(labels[split])):
                values = state(linears(number, 2, 5, 4, 1), lambda k: f"seq.{k}")
                paths.append(f"inrs/{split}_{number}/model_final.pth")
                (tmp_path / paths[-1]).parent.mkdir(parents=True)
                torch.save(values, tmp_path / paths[-1])
            splits[split] = {"path": paths, "label": labels[split]}
        (tmp_path / "splits.json").write_text(json.dumps(splits))
        return tmp_path / "splits.json"

    def test_outputs_equal_those_of_the_published_network(self, source):
        first, second = read_dwsnets(source, "train")
        points = torch.rand(6, 2)
        one, two, three = linears(1, 2, 5, 4, 1)
        expected = three(torch.sin(30 * two(torch.sin(30 * one(points)))))
        outputs = outputs_of(second, points)[0]
        torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
        labels = [network.columns["label"].item() for network in (first, second)]
        assert labels == [7, 1]
        assert first.architecture == {"kind": "siren", "widths": [2, 5, 4, 1]}

    def test_labels_may_be_in_the_files(self, source):
        splits = json.loads(source.read_text())
        change(source, label=4)
        paths = {split: splits[split]["path"] for split in ("test", "train")}
        source.write_text(json.dumps(paths))
        (network,) = read_dwsnets(source, "test")
        assert network.columns["label"].tolist() == [4]
        message = "train_0/model_final.pth': expected a value 'label'; got none"
        refused_dwsnets(source, message, split="train")

    @pytest.mark.parametrize(
        "key, value, message",
        [
            (
                "seq.1.bias",
                torch.full((4,), torch.nan),
                "layers.1.bias: expected finite numbers; got others",
            ),
            (
                "seq.1.bias",
                torch.zeros(4, dtype=torch.complex64),
                "layers.1.bias: expected a tensor of real numbers; got .*complex",
            ),
            (3, 0, "expected names; got 3"),
        ],
    )
    def test_bad_files(self, source, key, value, message):
        change(source, {key: value})
        refused_dwsnets(source, f"final.pth': {message}")

    @pytest.mark.parametrize(
        "text, message",
        [
            ('{"train": {"path": []}}', "expected a value 'test'; got none"),
            ("{", "expected JSON; got: Expecting"),
            ('{"test": {"path": [1], "label": [1]}}', ".*this format; got: .*'int'"),
        ],
    )
    def test_bad_split_files(self, source, text, message):
        source.write_text(text)
        refused_dwsnets(source, f"splits.json': {message}")

    @pytest.mark.parametrize("label", ["x", None, [], -1, float("nan"), float("inf")])
    def test_bad_labels(self, source, label):
        change(source, label=label)
        source.write_text(json.dumps({"test": [TEST_FILE]}))
        refused_dwsnets(source, "final.pth': label: expected a number from 0")

    @pytest.mark.parametrize("contents", [b"", b"<html>", b"\x80\x02h\x05."])
    def test_files_without_a_checkpoint_are_refused(self, source, contents):
        (source.parent / TEST_FILE).write_bytes(contents)
        refused_dwsnets(source, "final.pth': expected tensors and plain values")


class TestNfn:
    @pytest.fixture
    def source(self, tmp_path, monkeypatch):
        held_out = {"validation": 1, "test": 2}
        monkeypatch.setattr(published_inrs, "NFN_HELD_OUT", held_out)
        write_nfn(tmp_path, count=12, widths=(2, 5, 4, 3))
        return tmp_path

    def test_splits_are_of_indices_in_their_order(self, source):
        def column(split, key):
            return [network.columns[key].item() for network in read_nfn(source, split)]

        assert column("train", "index") == list(range(9))
        assert column("validation", "index") == [9]
        assert column("test", "index") == [10, 11]
        assert column("test", "label") == [0, 1]

    def test_an_image_is_the_output_plus_a_half(self, source):
        (*_, last) = read_nfn(source, "test")
        points = torch.rand(6, 2)
        one, two, three = linears(11, 2, 5, 4, 3)
        image = three(torch.sin(30 * two(torch.sin(30 * one(points)))))  # in [-1, 1]
        outputs = outputs_of(last, points)[0] + 0.5
        torch.testing.assert_close(outputs, (image + 1) / 2, atol=1e-4, rtol=1e-4)

    def test_bad_names(self, source):
        path = source / "other" / "net3.pth"
        path.parent.mkdir()
        torch.save({}, path)
        message = "other/net3.pth': expected a name NAME_<label>s/net<index>.pth"
        refused_nfn(source, message)
        path.unlink()
        torch.save({}, source / "randinit_test_0s" / "net3.pth")
        refused_nfn(source, "3s/net3.pth': .*an index that no other file has")

    def test_weights_of_no_linear_layer(self, source):
        values = {"net.0.weight": torch.zeros(3)}
        torch.save(values, source / "randinit_test_0s" / "net0.pth")
        message = "net0.pth': expected weights of linear layers; got layers.0.weight"
        refused_nfn(source, message, split="train")

    def test_too_few_networks_for_all_splits_are_refused(self, source):
        refused_nfn(source / "nothing", "expected 4 networks or more, NAME.*; got 0")


class Code:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("was run",))


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    path = tmp_path / "a.pth"
    splits = {"test": {"path": ["a.pth"], "label": [1]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    message = "a.pth': expected tensors and plain values of torch.save; got: "
    torch.save({"seq.0.weight": Code()}, path)
    refused_dwsnets(tmp_path / "splits.json", message)
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    refused_dwsnets(tmp_path / "splits.json", message)
    path.unlink()
    refused_dwsnets(tmp_path / "splits.json", message)
    np.save(tmp_path / "weights.npy", np.array([Code()], dtype=object))
    refused(read_cnn_zoo, tmp_path, "weights.npy': .*; got: .*Python objects")
    assert "was run" not in capsys.readouterr().out
