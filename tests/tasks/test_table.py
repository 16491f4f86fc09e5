import csv
import json
from dataclasses import replace

import pytest

from tasks.table import PUBLISHED, Config, make_table, runs
from tasks.table_rows import TABLES, Row

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
    """Two rows of small models."""
    rows = (
        Row("statnn", {"model": "statnn"}),
        Row("ng-gnn", {"sizes": {"width": 4, "layers": 1}}, True),
    )
    small = replace(TABLES["predict-small"], rows=rows)
    monkeypatch.setitem(TABLES, "predict-small", small)
    folders = str(data / "zoo-small"), str(tmp_path)
    return Config("predict-small", *folders, minutes=0.05, batch=8, seeds=2)


def test_new_seeds_are_added_and_other_settings_refused(config, tmp_path, capsys):
    make_table(replace(config, seeds=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    make_table(config)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(before) == 2 and len(after) == 3
    assert before.items() <= after.items()
    results = json.loads((tmp_path / "table.json").read_text())
    counts = {label: len(of_row) for label, of_row in results.items()}
    assert counts == {"statnn": 1, "ng-gnn": 2}
    taus = [result["test"]["tau"] for result in results["ng-gnn"]]
    printed = capsys.readouterr().out
    assert f"{sum(taus) / 2:.4g} ± " in printed
    assert "0.931" in printed and "0.915" in printed
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    with pytest.raises(ValueError, match="made with other settings: training.*'batch'"):
        make_table(replace(config, batch=2))


def test_a_damaged_result_is_named(config, tmp_path):
    path = tmp_path / "statnn-0" / "result.json"
    path.parent.mkdir()
    path.write_text('{"con')
    with pytest.raises(ValueError, match=f"result '{path}': expected JSON"):
        make_table(config)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_row_is_a_model_that_reads_the_data(name, data, tmp_path):
    config = Config(name, str(data / FOLDERS[name]), str(tmp_path), seeds=1)
    for run in runs(config):
        task = TABLES[name].task(run.config)
        assert sum(p.numel() for p in task.model.parameters()) > 1000
    folders = [run.config.folder for run in runs(replace(config, seeds=2))]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    "name, like, setting",
    [
        ("edit-contrast", "edit", {"edit": "contrast"}),
        ("predict-narrow", "predict-wild", {"widest": 16}),
    ],
)
def test_contrast_and_narrow_networks_have_the_models_of_their_kind(
    name, like, setting, tmp_path
):
    def configs(table):
        return [run.config for run in runs(Config(table, "data", str(tmp_path)))]

    expected = [replace(config, **setting) for config in configs(like)]
    assert configs(name) == expected != configs(like)


def test_figures_without_results_are_left_out(config, monkeypatch, tmp_path):
    table = TABLES["predict-small"]
    figures = {"mse": 1, **table.figures}
    monkeypatch.setitem(TABLES, "predict-small", replace(table, figures=figures))
    make_table(replace(config, seeds=1))
    header = (tmp_path / "table.md").read_text().splitlines()[0]
    assert header.split()[3:8:2] == ["tau", "r2", "published"]


def test_published_figures_are_of_rows_of_tables():
    with PUBLISHED.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines
    for line in lines:
        assert line["row"] in [row.label for row in TABLES[line["table"]].rows], line
        assert float(line["figure"]) > 0


def test_unknown_tables_and_rows_are_named(config):
    message = "table: expected one of classify, .*; got 'all'"
    with pytest.raises(ValueError, match=message):
        replace(config, table="all")
    message = "rows: expected some of statnn; ng-gnn; got gru"
    with pytest.raises(ValueError, match=message):
        replace(config, rows=("statnn", "gru"))


def test_ours_are_compiled_except_ng_t(data, tmp_path):
    options = {"compiled": True, "seeds": 1}
    config = Config("classify", str(data / "inr-mnist"), str(tmp_path), **options)
    compiled = {run.row.label for run in runs(config) if run.config.compiled}
    assert compiled == {"ng-gnn", "ng-gnn, 64 probes", "ng-gnn, permutations alone"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"compiled": True}, "compiled: expected networks of one"),
        (
            {"data": "nowhere"},
            "folder 'nowhere': expected a folder of networks; got none",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(
    config, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        make_table(replace(config, **changes))
    assert not list(tmp_path.glob("*/checkpoint.pt"))
