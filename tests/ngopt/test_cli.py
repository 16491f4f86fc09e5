import json
import sys

import pytest

from ngopt import cli, list_pretrained


def test_list(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_pretrained()


def test_list_as_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["ff"]["parameters"] == 1602
    assert found["default"]["kind"] == "base rule"


def test_info(capsys):
    assert cli.main(["info", "ng-gnn", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["graph_every"] == 8
    assert found["recipe"]["stages"]
    assert cli.main(["info", "ng-gnn"]) == 0
    assert "config      graph_every = 8" in capsys.readouterr().out


def test_unknown_weights_are_an_error_of_one_line(capsys):
    assert cli.main(["info", "nothing"]) == cli.FAILED
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_graph(capsys):
    assert cli.main(["graph", "tests.ngopt.race.parabola:model"]) == 0
    assert "built in" in capsys.readouterr().out


def test_help_of_graph_names_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["graph", "--help"])
    assert capsys.readouterr().out.startswith("usage: ngopt graph module:name")


@pytest.mark.parametrize("module", ["examples.races.nothing", "harness.nothing"])
def test_examples_need_a_checkout(module, capsys):
    assert cli.main(["race", module]) == cli.FAILED
    assert "in the checkout of ngopt: run there" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["graph", "race"])
def test_modules_of_the_present_folder_are_found(
    command, tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_module.py").write_text("number = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main([command, "own_module:number"]) == cli.FAILED
    assert "cannot import" not in capsys.readouterr().err
