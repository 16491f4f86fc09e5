"""On small files that are made here, as their authors' programs write them."""

import csv
import gzip
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.sources.published_cnns import read_cnn_zoo, read_wild_park
from tests.tasks.sources.published import (
    WILD_CONFIG,
    refused,
    wild_model,
    write_wild_park,
)
from tests.tasks.stacks import outputs_of

refused_zoo = partial(refused, read_cnn_zoo)
refused_park = partial(refused, read_wild_park)


def change(source, number, **changes):
    """Changes values in a file of the test split of Wild Park."""
    path = Path(source.parent, f"zoo/run_2/checkpoint_{number}/checkpoint.pt")
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


ROW = {"varname": "a/bias:0", "start_idx": 0, "end_idx": 4, "shape": "(4,)"}


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
            row = {"start_idx": start, "end_idx": end, "shape": shape}
            rows.append({"varname": f"sequential/{name}", **row})
            start = end
        self.write(tmp_path / "layout.csv", rows, open)
        weights = generator.standard_normal((40, start)).astype(np.float32)
        np.save(tmp_path / "weights.npy", weights)
        metrics = []
        for number in range(40):
            row = {
                "step": (0, 86)[number % 2],
                "test_accuracy": number / 100,
                "config.activation": ("relu", "tanh")[number // 2 % 2],
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

    def test_outputs_equal_those_of_the_published_network(self, source):
        groups = read_cnn_zoo(source, "test")
        tanh = next(g for g in groups if g.architecture["activations"][0] == "tanh")
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
            kernel, bias = parts[f"{name}/kernel:0"], parts[f"{name}/bias:0"]
            side = (len(x) - 3) // 2 + 1
            y = np.zeros((side, side, len(bias)))
            for row in range(side):
                for column in range(side):
                    patch = x[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                    y[row, column] = np.tensordot(patch, kernel, 3) + bias
            x = np.tanh(y)
        expected = x.mean((0, 1)) @ parts["dense/kernel:0"] + parts["dense/bias:0"]
        pixels = torch.from_numpy(image).float().permute(2, 0, 1)[None]
        outputs = outputs_of(tanh, pixels)[place, 0].numpy()
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)

    def test_networks_at_the_end_of_training_are_split(self, source):
        runs = {}
        for split in ("train", "validation", "test"):
            columns = [group.columns for group in read_cnn_zoo(source, split)]
            runs[split] = sorted(torch.cat([c["run"] for c in columns]).tolist())
            for c in columns:
                torch.testing.assert_close(c["accuracy"], c["run"] / 100)
                assert set(c["step"].tolist()) == {86}
        assert runs["test"] == list(range(21, 40, 2))
        assert sorted(runs["train"] + runs["validation"]) == list(range(1, 20, 2))
        assert len(runs["train"]) == 8

    def test_bad_weights(self, source):
        path = source / "weights.npy"
        weights = np.load(path)
        bad = weights.copy()
        bad[21] = 1e30
        np.save(path, bad)
        refused_zoo(source, "weights.npy': network 21: expected finite outputs")
        bad[21, 7] = np.inf
        np.save(path, bad)
        refused_zoo(source, "weights.npy': layers.0.weight: expected finite numbers")
        np.save(path, weights[:39])
        refused_zoo(source, "metrics.csv.gz': expected 39 rows, as of weights; got 40")
        np.save(path, np.zeros((4, 3), complex))
        refused_zoo(source, r"weights.npy': .*; got complex128 \(4, 3\)")
        path.write_bytes(b"")
        refused_zoo(
            source, "weights.npy': expected a file of this format; got: No data"
        )

    @pytest.mark.parametrize(
        "row, message",
        [
            ({**ROW, "shape": "(5,)"}, "expected a file of this format; got: .*5"),
            (ROW, "varname: expected kernel:0 and bias:0 of layers; got a/bias:0"),
            ({**ROW, "varname": "a/gamma:0"}, "varname: .*; got a/gamma:0"),
            ({"varname": "x", "start_idx": 0, "end_idx": 1}, ".*not found: .'shape'"),
        ],
    )
    def test_bad_layouts(self, source, row, message):
        self.write(source / "layout.csv", [row], open)
        refused_zoo(source, f"layout.csv': {message}")

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"step": "last"}, "step: expected 86 in some rows; got none"),
            ({"test_accuracy": 55}, "test_accuracy: .* from 0 to 1; got 55"),
            ({"test_accuracy": None}, "test_accuracy: .*; got nan"),
        ],
    )
    def test_bad_metrics(self, source, changes, message):
        row = {"step": 86, "test_accuracy": 0.1, "config.activation": "relu"}
        rows = [{**row, **changes}] * 40
        self.write(source / "metrics.csv.gz", rows, gzip.open)
        refused_zoo(source, f"metrics.csv.gz': {message}")

    def test_damaged_metrics(self, source):
        path = source / "metrics.csv.gz"
        packed = bytearray(path.read_bytes())
        packed[30:40] = bytes(10)
        for content in (packed, b"step"):
            path.write_bytes(content)
            refused_zoo(source, "gz': expected a file of this format; got: ")


class TestWildPark:
    @pytest.fixture
    def source(self, tmp_path):
        return write_wild_park(tmp_path)

    def test_outputs_equal_those_of_the_published_network(self, source):
        (*_, last) = read_wild_park(source, "validation")
        model = wild_model(2)
        images = torch.randn(3, 1, 32, 32)
        first = nn.functional.gelu(model["layers"][0](images))
        third = model["layers"][2](model["layers"][1](first).sigmoid())
        third[:, :4] += first
        expected = model["fc"](nn.functional.leaky_relu(third).mean((2, 3)))
        outputs = outputs_of(last, images)[0]
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
        assert last.columns["step"].tolist() == [2]
        assert last.columns["accuracy"].item() == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"model": {}, "config": {"channels": [1]}}, "a value 'kernel_size'; got"),
            (
                {"model": {"fc.weight": torch.zeros(10, 5)}},
                r"fc.bias: expected shape \(10,\); got none",
            ),
            ({"model": [1]}, "expected a file of this format; got: 'list' object"),
            ({"model": {"fc.bias": 1.0}}, "fc.bias: expected a tensor .*; got float"),
        ],
    )
    def test_bad_files(self, source, changes, message):
        change(source, 0, **changes)
        refused_park(source, f"checkpoint.pt': .*{message}")

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"channels": 4}, "this format; got: 'int' object is not iterable"),
            ({"channels": [1, -4, 6, 5]}, "this format; got: .*-4"),
            ({"residual": [None, -1, 0]}, "this format; got: .*'NoneType'"),
            ({"residual": [-1, -1, 2]}, "skips: expected .* layer 2; got 2"),
            ({"activation": "gelu"}, "activations: expected 3 entries; got 4"),
            ({"stride": [16, 16, 1], "padding": [1, 0, 0]}, "[Kk]ernel size"),
            ({"padding": [1, 0, 0]}, "size of tensor"),  # of the skip's two ends
        ],
    )
    def test_bad_configs(self, source, changes, message):
        change(source, 1, config={**WILD_CONFIG, **changes})
        refused_park(source, f"checkpoint_1/checkpoint.pt': .*{message}")

    def test_bad_split_files(self, source):
        splits = json.loads(source.read_text())
        for key, value in (("score", 55), ("score", None), ("step", None)):
            entry = {**splits["test"], key: [value] * 3}
            source.write_text(json.dumps({"test": entry}))
            refused_park(source, f"splits.json': {key}: .*; got {value}")
        del splits["test"]["score"][0]
        source.write_text(json.dumps(splits))
        refused_park(source, "splits.json': .*; got: All arrays must be of the same")
