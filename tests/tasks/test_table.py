import csv
import json
import shutil
from dataclasses import replace

import pytest

from harness.distributed import Ranks
from tasks.shards import read_shard, write_shard
from tasks.table import PUBLISHED, Config, draw_curve, run, trainings
from tasks.table_rows import TABLES, Row, Table

FOLDERS = {
    "classify": "inr-mnist",
    "probes": "inr-mnist",
    "sizes": "inr-mnist",
    "predict-small": "zoo-small",
    "predict-wild": "zoo-wild-park",
    "predict-diverse": "zoo-diverse",
    "represent": "inr-sines",
}


@pytest.fixture
def config(data, tmp_path, clock, monkeypatch):
    """Two rows that are soon learned."""
    whole = TABLES["predict-small"]
    sizes = {"width": 4, "layers": 1}
    rows = (
        Row("statnn", {"model": "statnn"}),
        Row("ng-gnn", {"sizes": sizes}, True),
    )
    small = Table(whole.settings, whole.task, whole.figures, rows)
    monkeypatch.setitem(TABLES, "predict-small", small)
    return Config(
        "predict-small",
        str(data / "zoo-small"),
        str(tmp_path),
        minutes=0.05,
        batch=8,
        seeds=2,
    )


def test_a_table_has_ours_with_all_seeds_and_others_once(config, tmp_path, capsys):
    run(config)
    found = json.loads((tmp_path / "table.json").read_text())
    assert {label: len(some) for label, some in found.items()} == {
        "statnn": 1,
        "ng-gnn": 2,
    }
    taus = [one["test"]["tau"] for one in found["ng-gnn"]]
    said = capsys.readouterr().out
    assert f"{sum(taus) / 2:.4g} ± " in said
    assert "0.931" in said and "0.915" in said
    assert (tmp_path / "table.md").read_text().count("\n") == 4


def test_a_curve_is_drawn_of_rows_that_differ_in_nothing_else(
    config, monkeypatch, tmp_path
):
    sizes = {"width": 4, "layers": 1}
    rows = [Row(f"{n} networks", {"sizes": sizes, "limit": n}, True) for n in (16, 8)]
    wide = {"sizes": {"width": 8, "layers": 1}, "limit": 8}
    drawn = {}
    monkeypatch.setattr(
        "tasks.table.draw_means",
        lambda path, found, *labels: drawn.update({path: (found, labels)}),
    )
    table = replace(
        TABLES["predict-small"],
        rows=(
            *rows,
            Row("statnn", {"model": "statnn"}),
            Row("8 networks, wide", wide, True),
        ),
        curve=("limit", "networks for training"),
    )
    monkeypatch.setitem(TABLES, "predict-small", table)
    run(replace(config, seeds=1))
    results = json.loads((tmp_path / "table.json").read_text())
    expected = {
        n: [one["test"]["tau"] for one in results[f"{n} networks"]] for n in (16, 8)
    }
    labels = "networks for training", "tau"
    assert drawn == {tmp_path / "curve.png": (expected, labels)}


def test_a_curve_leaves_out_results_that_diverged(config, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "tasks.table.draw_means", lambda _, found, *__: drawn.append(found)
    )
    table = replace(TABLES["sizes"], figures={"accuracy": 100})
    accuracies = {1000: [0.5, None], 2500: [None], 5000: [0.25]}
    found = {}
    for count, values in accuracies.items():
        found[f"{count:,} networks"] = [{"test": {"accuracy": x}} for x in values]
    draw_curve(config, table, found)
    assert drawn == [{1000: [50.0], 5000: [25.0]}]
    draw_curve(config, table, {"2,500 networks": found["2,500 networks"]})
    assert len(drawn) == 1


def test_what_is_there_is_not_made_again(config, tmp_path):
    run(replace(config, seeds=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    run(config)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(before) == 2 and len(after) == 3
    assert all(after[path] == time for path, time in before.items())


def test_results_of_other_settings_are_refused(config):
    run(config)
    with pytest.raises(ValueError, match="made with other settings: training.*'batch'"):
        run(replace(config, batch=2))


def test_a_damaged_shard_is_left_out_on_request(config, tmp_path, capsys):
    data = tmp_path / "damaged"
    shutil.copytree(config.data, data)
    groups = read_shard(data / "train-00000.safetensors")
    write_shard(data / "train-00001.safetensors", groups)
    whole = (data / "train-00000.safetensors").read_bytes()
    (data / "train-00000.safetensors").write_bytes(whole[:-9])
    folder = str(tmp_path / "table")
    config = replace(config, data=str(data), folder=folder, seeds=1)
    with pytest.raises(ValueError, match="shard '.*train-00000.safetensors'"):
        run(config)
    run(replace(config, skip_damaged=True))
    assert "left out: shard" in capsys.readouterr().out


def test_a_damaged_result_is_named(config, tmp_path):
    path = tmp_path / "statnn-0" / "result.json"
    path.parent.mkdir()
    path.write_text('{"con')
    with pytest.raises(ValueError, match=f"result '{path}': expected JSON"):
        run(config)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_row_is_a_model_that_reads_the_data(name, data, tmp_path):
    config = Config(name, str(data / FOLDERS[name]), str(tmp_path), seeds=1)
    for training in trainings(config):
        task = TABLES[name].task(training.config, Ranks())
        assert sum(p.numel() for p in task.model.parameters()) > 1000
    folders = [
        training.config.folder for training in trainings(replace(config, seeds=2))
    ]
    assert len(set(folders)) == len(folders)


def test_contrast_and_narrow_networks_have_the_models_of_their_kind(tmp_path):
    for name, like, setting in (
        ("edit-contrast", "edit", {"edit": "contrast"}),
        ("predict-narrow", "predict-wild", {"widest": 16}),
    ):
        made = [
            [one.config for one in trainings(Config(table, "data", str(tmp_path)))]
            for table in (name, like)
        ]
        assert made[0] == [replace(one, **setting) for one in made[1]] != made[1]


def test_figures_are_those_that_results_have(config, monkeypatch, tmp_path):
    whole = TABLES["predict-small"]
    figures = {"mse": 1, **whole.figures}
    monkeypatch.setitem(TABLES, "predict-small", replace(whole, figures=figures))
    run(replace(config, seeds=1))
    header = (tmp_path / "table.md").read_text().splitlines()[0]
    assert header.split()[3:8:2] == ["tau", "r2", "published"]


def test_published_rows_are_rows():
    with PUBLISHED.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines
    for line in lines:
        assert line["row"] in [row.label for row in TABLES[line["table"]].rows], line
        assert float(line["figure"]) > 0


def test_unknown_tables_and_rows_are_named(config):
    with pytest.raises(
        ValueError, match="table: expected one of classify, .*; got 'all'"
    ):
        replace(config, table="all")
    with pytest.raises(
        ValueError, match="rows: expected some of statnn; ng-gnn; got gru"
    ):
        replace(config, rows=("statnn", "gru"))


def test_ours_are_compiled_but_ng_t(data, tmp_path):
    config = Config(
        "classify",
        str(data / "inr-mnist"),
        str(tmp_path),
        compiled=True,
        seeds=1,
    )
    compiled = {one.row.label for one in trainings(config) if one.config.compiled}
    assert compiled == {
        "ng-gnn",
        "ng-gnn, 64 probes",
        "ng-gnn, permutations alone",
    }


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"compiled": True}, "compiled: expected networks of one"),
        (
            {"data": "nowhere"},
            "folder 'nowhere': expected a folder of networks; got none",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(
    config, tmp_path, changes, told
):
    with pytest.raises(ValueError, match=told):
        run(replace(config, **changes))
    assert not list(tmp_path.glob("*/checkpoint.pt"))
