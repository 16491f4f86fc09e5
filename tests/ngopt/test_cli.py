import json
import sys

import pytest

import ngopt
from ngopt import cli, list_pretrained
from tests.interpreters import printed


def test_list(capsys):
    assert cli.main(["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "parameters"]
    assert [line.split()[0] for line in lines] == list_pretrained()


def test_list_as_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ff"]["parameters"] == 1602
    assert rows["default"]["kind"] == "base rule"


def test_info(capsys):
    assert cli.main(["info", "ng-gnn", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["config"]["graph_every"] == 8
    assert description["recipe"]["stages"]
    assert cli.main(["info", "ng-gnn"]) == 0
    assert "config      graph_every = 8" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"ngopt {ngopt.__version__}\n"


@pytest.mark.parametrize(
    "command", [["graph", "own/module.py:f"], ["race", "own/module.py"]]
)
def test_file_in_place_of_a_module(command, capsys):
    assert cli.main(command) == cli.FAILED
    assert "Write the module without '.py': own.module" in capsys.readouterr().err


def test_missing_matplotlib_is_an_error_before_the_graph_is_built(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["graph", "tests.ngopt.race.parabola:model", "--draw", "graph.png"]
    assert cli.main(arguments) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.out == "" and "draw needs matplotlib" in printed.err


@pytest.mark.parametrize("command", ["graph", "info"])
def test_interrupt_is_exit_status_130(command, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.graph_command, "run", interrupt)
    monkeypatch.setattr(cli, "_info", interrupt)
    assert cli.main([command, "any"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_unknown_weights_are_an_error_of_one_line(capsys):
    assert cli.main(["info", "nothing"]) == cli.FAILED
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_graph(capsys):
    assert cli.main(["graph", "tests.ngopt.race.parabola:model"]) == 0
    assert "built in" in capsys.readouterr().out


def test_help_of_graph_has_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["graph", "--help"])
    usage, _, _ = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith("usage: ngopt graph") and "module:name" in usage


@pytest.mark.parametrize("module", ["examples.races.nothing", "harness.nothing"])
def test_error_for_examples_outside_a_checkout(module, capsys):
    assert cli.main(["race", module]) == cli.FAILED
    assert "in the checkout of ngopt: run there" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["graph", "race"])
def test_modules_of_the_working_directory_are_imported(
    command, tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_module.py").write_text("number = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main([command, "own_module:number"]) == cli.FAILED
    assert "cannot import" not in capsys.readouterr().err


def test_info_of_your_own_metanet(tmp_path, capsys):
    path = str(tmp_path / "own.safetensors")
    code = f"""
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.user_classes import Halved
save_pretrained(LearnedOptimizer(Halved()), {path!r})
"""
    printed(code)
    if "tests.user_classes" not in sys.modules:
        assert cli.main(["info", path]) == cli.FAILED
        assert "pass --metanet tests.user_classes:Halved" in capsys.readouterr().err
    assert cli.main(["info", path, "--metanet", "tests.user_classes:Halved"]) == 0
    assert "class       Halved" in capsys.readouterr().out
