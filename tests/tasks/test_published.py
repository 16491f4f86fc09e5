"""On small files of the published formats that are made here,
as their authors' programs write them."""

import csv
import gzip
import json
import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.networks.architectures import Stack
from tasks.published import PublishedConfig, bring
from tasks.shards import read_manifest, read_split, shard_paths
from tasks.sources import published_inrs
from tasks.sources.published_cnns import read_cnn_zoo, read_wild_park
from tasks.sources.published_inrs import read_dwsnets, read_nfn


def outputs_of(networks, inputs):
    stack = Stack.of(networks)
    return stack.architecture.outputs(stack.params, inputs)


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


class TestNfn:
    @pytest.fixture
    def source(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            published_inrs, "NFN_HELD_OUT", {"validation": 1, "test": 2}
        )
        for number in range(12):
            layers = linears(number, 2, 5, 4, 3)
            values = state(
                layers, lambda k: "net.2" if k == 2 else f"net.{k}.linear"
            )
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
        image = three(
            torch.sin(30 * two(torch.sin(30 * one(points))))
        )  # in [-1, 1]
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
        torch.save(
            {"net.0.weight": torch.zeros(3)},
            source / "randinit_test_0s" / "net0.pth",
        )
        with pytest.raises(
            ValueError,
            match=r"net0.pth': expected weights of linear layers; got layers.0.weight",
        ):
            next(read_nfn(source, "train"))
        with pytest.raises(
            ValueError, match="expected 4 networks or more; got 0"
        ):
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


class TestCnnZoo:
    # as Keras orders them
    LAYOUT = (
        ("conv2d/bias:0", (4,)),
        ("conv2d/kernel:0", (3, 3, 1, 4)),
        ("conv2d_1/bias:0", (5,)),
        ("conv2d_1/kernel:0", (3, 3, 4, 5)),
        ("dense/bias:0", (10,)),
        ("dense/kernel:0", (5, 10)),
    )

    @pytest.fixture
    def source(self, tmp_path):
        generator = np.random.default_rng(0)
        rows, start = [], 0
        for name, shape in self.LAYOUT:
            end = start + int(np.prod(shape))
            rows.append(
                {
                    "varname": f"sequential/{name}",
                    "start_idx": start,
                    "end_idx": end,
                    "shape": shape,
                }
            )
            start = end
        self.write(tmp_path / "layout.csv", rows, open)
        np.save(
            tmp_path / "weights.npy",
            generator.standard_normal((40, start)).astype(np.float32),
        )
        metrics = []
        for number in range(40):
            step = (0, 86)[number % 2]
            activation = ("relu", "tanh")[number // 2 % 2]
            row = {
                "step": step,
                "test_accuracy": number / 100,
                "config.activation": activation,
            }
            metrics.append({"": number, **row, "modeldir": "somewhere"})
        self.write(tmp_path / "metrics.csv.gz", metrics, gzip.open)
        return tmp_path

    @staticmethod
    def write(path, rows, opened):
        with opened(path, "wt", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def test_networks_say_what_theirs_do(self, source):
        networks = {
            some.architecture["activations"][0]: some
            for some in read_cnn_zoo(source, "test")
        }
        tanh = networks["tanh"]
        place = 2
        flat = np.load(source / "weights.npy")[tanh.columns["run"][place]]
        parts, start = {}, 0
        for name, shape in self.LAYOUT:
            end = start + int(np.prod(shape))
            parts[name] = flat[start:end].reshape(shape)
            start = end
        image = np.random.default_rng(1).standard_normal((32, 32, 1))
        x = image
        for name in ("conv2d", "conv2d_1"):
            kernel = parts[f"{name}/kernel:0"]
            bias = parts[f"{name}/bias:0"]
            side = (len(x) - 3) // 2 + 1
            y = np.zeros((side, side, len(bias)))
            for row in range(side):
                for column in range(side):
                    patch = x[
                        2 * row : 2 * row + 3, 2 * column : 2 * column + 3
                    ]
                    y[row, column] = np.tensordot(patch, kernel, 3) + bias
            x = np.tanh(y)
        expected = (
            x.mean((0, 1)) @ parts["dense/kernel:0"] + parts["dense/bias:0"]
        )
        found = outputs_of(
            tanh, torch.from_numpy(image).float().permute(2, 0, 1)[None]
        )[place, 0]
        torch.testing.assert_close(
            found, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4
        )

    def test_networks_at_the_end_of_training_are_split(self, source):
        runs = {}
        for split in ("train", "validation", "test"):
            found = list(read_cnn_zoo(source, split))
            runs[split] = sorted(
                run for some in found for run in some.columns["run"].tolist()
            )
            for some in found:
                torch.testing.assert_close(
                    some.columns["accuracy"], some.columns["run"] / 100
                )
                assert set(some.columns["step"].tolist()) == {86}
        assert runs["test"] == list(range(21, 40, 2))
        assert sorted(runs["train"] + runs["validation"]) == list(
            range(1, 20, 2)
        )
        assert len(runs["train"]) == 8

    def test_bad_files(self, source):
        weights = np.load(source / "weights.npy")
        np.save(source / "weights.npy", weights[:39])
        with pytest.raises(
            ValueError,
            match=r"metrics.csv.gz': expected 39 rows, as of weights; got 40",
        ):
            next(read_cnn_zoo(source, "test"))
        weights[39, 7] = np.inf
        np.save(source / "weights.npy", weights)
        with pytest.raises(
            ValueError,
            match=r"weights.npy': layers.0.weight: expected finite numbers",
        ):
            list(read_cnn_zoo(source, "test"))
        row = {
            "varname": "a/bias:0",
            "start_idx": 0,
            "end_idx": 4,
            "shape": "(5,)",
        }
        self.write(source / "layout.csv", [row], open)
        with pytest.raises(
            ValueError,
            match=r"layout.csv': expected numbers that agree; got .* shape '\(5,\)'",
        ):
            next(read_cnn_zoo(source, "test"))
        self.write(source / "layout.csv", [{**row, "shape": "(4,)"}], open)
        with pytest.raises(
            ValueError,
            match=r"layout.csv': varname: expected as many kernels as biases, 1; got 0",
        ):
            next(read_cnn_zoo(source, "test"))
        self.write(
            source / "layout.csv", [{**row, "varname": "a/gamma:0"}], open
        )
        with pytest.raises(
            ValueError,
            match=r"layout.csv': varname: expected kernel:0 or bias:0; got 'a/gamma:0'",
        ):
            next(read_cnn_zoo(source, "test"))
        self.write(
            source / "layout.csv",
            [{"varname": "x", "start_idx": 0, "end_idx": 1}],
            open,
        )
        with pytest.raises(
            ValueError,
            match=r"layout.csv': shape: expected a column of this name; got none",
        ):
            next(read_cnn_zoo(source, "test"))
        metrics = [
            {"step": "last", "test_accuracy": 0.1, "config.activation": "relu"}
        ] * 40
        self.write(source / "metrics.csv.gz", metrics, gzip.open)
        with pytest.raises(
            ValueError,
            match=r"metrics.csv.gz': step: expected numbers; got: .*'last'",
        ):
            next(read_cnn_zoo(source, "test"))
        (source / "metrics.csv.gz").write_bytes(b"step")
        with pytest.raises(
            ValueError,
            match=r"metrics.csv.gz': expected a table; got: Not a gzipped file",
        ):
            next(read_cnn_zoo(source, "test"))


WILD_CONFIG = {
    "n_layers": 3,
    "n_classes": 10,
    "channels": [1, 4, 6, 5],
    "kernel_size": [3, 5, 3],
    "stride": [1, 1, 1],
    "padding": [1, 2, 1],
    "residual": [-1, -1, 0],
    "activation": ["gelu", "sigmoid", "leaky_relu"],
}


class TestWildPark:
    def model(self, seed):
        torch.manual_seed(seed)
        config = WILD_CONFIG
        sizes = zip(
            config["channels"],
            config["channels"][1:],
            config["kernel_size"],
            strict=False,
        )
        layers = nn.ModuleList(
            nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in sizes
        )
        return nn.ModuleDict({"layers": layers, "fc": nn.Linear(5, 10)})

    @pytest.fixture
    def source(self, tmp_path):
        splits = {}
        for place, split in enumerate(("train", "val", "test")):
            paths = [
                f"zoo/run_{place}/checkpoint_{number}/checkpoint.pt"
                for number in range(3)
            ]
            for number, path in enumerate(paths):
                (tmp_path / path).parent.mkdir(parents=True)
                values = {
                    "model": self.model(number).state_dict(),
                    "config": WILD_CONFIG,
                    "iteration": number,
                }
                torch.save(values, tmp_path / path)
            splits[split] = {
                "path": paths,
                "score": [0.1, 0.2, 0.3],
                "step": [0, 1, 2],
            }
        (tmp_path / "splits.json").write_text(json.dumps(splits))
        return tmp_path / "splits.json"

    def test_networks_say_what_theirs_do(self, source):
        (*_, last) = read_wild_park(source, "validation")
        model = self.model(2)
        images = torch.randn(3, 1, 32, 32)
        first = nn.functional.gelu(model["layers"][0](images))
        third = model["layers"][2](model["layers"][1](first).sigmoid())
        third[:, :4] += first
        expected = model["fc"](nn.functional.leaky_relu(third).mean((2, 3)))
        torch.testing.assert_close(
            outputs_of(last, images)[0], expected, atol=1e-5, rtol=1e-4
        )
        assert last.columns["step"].tolist() == [2]
        assert last.columns["accuracy"].item() == pytest.approx(0.3)

    def test_bad_files(self, source):
        path = Path(source.parent, "zoo/run_2/checkpoint_0/checkpoint.pt")
        values = torch.load(path, weights_only=True)
        torch.save(
            {**values, "config": {**WILD_CONFIG, "residual": [-1, -1, 2]}}, path
        )
        with pytest.raises(
            ValueError,
            match=r"checkpoint.pt': architecture: skips: expected layer 2 .* got 2",
        ):
            next(read_wild_park(source, "test"))
        torch.save({"model": {}, "config": {"channels": [1]}}, path)
        with pytest.raises(
            ValueError,
            match=r"checkpoint.pt': config.kernel_size: expected a value; got none",
        ):
            next(read_wild_park(source, "test"))
        torch.save({**values, "model": {"fc.weight": torch.zeros(10, 5)}}, path)
        with pytest.raises(
            ValueError,
            match=r"checkpoint.pt': fc.bias: expected shape \(10,\); got none",
        ):
            next(read_wild_park(source, "test"))
        splits = json.loads(source.read_text())
        del splits["test"]["score"][0]
        source.write_text(json.dumps(splits))
        with pytest.raises(
            ValueError,
            match=r"splits.json': score: expected 3 values, as of path; got 2",
        ):
            next(read_wild_park(source, "test"))

    def test_shards_of_all_splits_are_written(self, source, tmp_path, capsys):
        bring(
            PublishedConfig(
                "wild-park", str(source), str(tmp_path / "shards"), shard=2
            )
        )
        folder = tmp_path / "shards"
        assert [path.name for path in shard_paths(folder, "train")] == [
            f"train-0000{k}.safetensors" for k in range(2)
        ]
        steps = [
            step
            for group in read_split(folder, "validation")
            for step in group.columns["step"].tolist()
        ]
        assert steps == [0, 1, 2]
        assert read_manifest(folder)["settings"]["format"] == "wild-park"
        assert "9 networks in" in capsys.readouterr().out

    def test_a_source_that_is_not_there_leaves_no_folder(self, tmp_path):
        folder = tmp_path / "shards"
        with pytest.raises(ValueError, match="mistyped"):
            bring(
                PublishedConfig(
                    "wild-park", str(tmp_path / "mistyped"), str(folder)
                )
            )
        assert not folder.exists()
