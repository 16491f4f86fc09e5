import re
import sys

import pytest
from torch import nn

from ngopt import cli
from ngopt.graph.command import load_model

HERE = "toy_models"
SOURCE = """
from torch import nn

net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
number = 3

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
    def forward(self, index):
        return self.head(self.embedding(index))

class Factory:
    @staticmethod
    def make():
        return nn.Conv2d(3, 5, 3)

def broken():
    raise RuntimeError("no weights\\nanywhere")

def needs(width):
    return nn.Linear(width, width)

def text():
    return "net"
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    (tmp_path / f"{HERE}.py").write_text(SOURCE)
    (tmp_path / "not_python.py").write_text("def f(:\n")
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def main(arguments):
    return cli.main(["graph", *arguments])


def test_prints_the_summary_and_the_seconds(capsys):
    assert main([f"{HERE}:net"]) == 0
    printed = capsys.readouterr()
    assert "9 nodes in 3 groups, 26 parameter elements" in printed.out
    assert re.search(r"^built in \d+\.\d\d s$", printed.out, re.MULTILINE)
    assert printed.err == ""


def test_a_factory_an_example_and_a_drawing(capsys, tmp_path):
    options = "--example-shape 2 6 --dtype int64 --draw tied.svg"
    assert main([f"{HERE}:Tied", *options.split()]) == 0
    assert "embedding.tokens" in capsys.readouterr().out
    assert "<!-- tokens -->" in (tmp_path / "tied.svg").read_text()


def test_the_example_is_used(capsys):
    assert main([f"{HERE}:net", "--example-shape", "2", "3"]) == 0
    assert "1 component" in capsys.readouterr().out
    assert main([f"{HERE}:net", "--example-shape", "2", "5"]) == 2
    assert "Sequential does not run on the example input" in capsys.readouterr().err


def test_models_are_instances_classes_functions_and_inside_of_others():
    assert isinstance(load_model(f"{HERE}:net"), nn.Sequential)
    assert isinstance(load_model(f"{HERE}:Factory.make"), nn.Conv2d)
    assert type(load_model(f"{HERE}:Tied")).__name__ == "Tied"


NO_MODULE = "expected a torch.nn.Module or a function that makes one; got"
ERRORS = {
    "": "the following arguments are required: module:name",
    "no_such_module:net": "cannot import 'no_such_module': No module named "
    "'no_such_module'",
    "not_python:net": "cannot import 'not_python': invalid syntax",
    HERE: f"expected a model as module:name; got '{HERE}'",
    f"{HERE}:": "expected a model as module:name; got ",
    f"{HERE}:nothing": f"'{HERE}:nothing': expected 'nothing' in module '{HERE}'; got "
    "none",
    f"{HERE}:number": f"{NO_MODULE} int",
    f"{HERE}:text": f"{NO_MODULE} str",
    f"{HERE}:broken": "fails without arguments: RuntimeError: no weights anywhere",
    f"{HERE}:needs": "fails without arguments: TypeError",
    f"{HERE}:net --draw net.pdf": "expected a file ending in .png or .svg; got "
    "'net.pdf'",
    f"{HERE}:net --draw nowhere/net.png": "No such file or directory",
    f"{HERE}:net --example-shape 0 3": "--example-shape: expected positive numbers; "
    "got 0 3",
    f"{HERE}:net --example-shape a": "argument --example-shape: invalid int value: 'a'",
    f"{HERE}:net --dtype bool": "argument --dtype: invalid choice: 'bool'",
    f"{HERE}:net --wide": "unrecognized arguments: --wide",
    # before the model is made
    f"{HERE}:broken --draw net.jpg": "net.jpg",
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.items())
def test_bad_input_is_one_line_on_stderr(arguments, message, capsys):
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert message in error


def test_without_matplotlib_the_error_names_the_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([f"{HERE}:net", "--draw", "net.png"]) == 2
    assert "pip install 'ngopt[graph]'" in capsys.readouterr().err
