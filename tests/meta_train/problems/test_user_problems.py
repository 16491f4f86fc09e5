"""Problems of the user, as `module:factory`."""

import pytest

from meta_train.problems import PROBLEMS, load_problem
from meta_train.problems.__main__ import Config, run
from tests.meta_train.small import TOY, Toy

HERE = __name__
constant = 3


def make():
    return PROBLEMS["fm-16"]


def number():
    return 3


def half():
    class Half:
        name, steps = "half", 3

    return Half()


def needs_arguments(width, depth=2):
    return make()


def fails():
    raise AttributeError("of the user")


def test_a_factory_is_a_class_or_a_function():
    assert isinstance(load_problem(TOY), Toy)
    assert load_problem(f"{HERE}:make") is PROBLEMS["fm-16"]


def test_a_module_that_cannot_be_imported_is_named():
    missing = "problem 'nowhere:factory': cannot import 'nowhere': No module"
    with pytest.raises(ValueError, match=missing):
        load_problem("nowhere:factory")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("constant", "expected a function or class without arguments; got 3"),
        ("number", "expected an object with name, steps, init, .*evaluate; got 3. See"),
        ("half", "got Half without init, batch, loss, evaluate"),
        ("needs_arguments", "factory without arguments.*required argument: 'width'"),
        ("nothing", f"expected 'nothing' in module '{HERE}'; got none"),
    ],
)
def test_other_objects_are_errors(name, message):
    with pytest.raises(ValueError, match=f"^problem '{HERE}:{name}': .*{message}"):
        load_problem(f"{HERE}:{name}")


def test_errors_of_a_factory_are_raised_unchanged():
    with pytest.raises(AttributeError, match="^of the user$"):
        load_problem(f"{HERE}:fails")


def test_the_line_of_an_error_in_a_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "user_module_that_fails.py").write_text(
        "import torch\n\ntorch.manual_seed(2**70)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = r"cannot import .*Overflow.*user_module_that_fails.py, line 3\)"
    with pytest.raises(ValueError, match=message):
        load_problem("user_module_that_fails:Toy")


def test_errors_for_unknown_names_have_the_nearest():
    message = "^problem 'fm-17': expected a known name or module:factory. Nearest: "
    with pytest.raises(ValueError, match=f"{message}fm-16, fm-8") as raised:
        load_problem("fm-17")
    assert len(str(raised.value)) < 200
    assert "python -m meta_train.problems --names" in str(raised.value)


def test_names_are_listed(capsys):
    run(Config(names=True))
    output = capsys.readouterr().out
    assert "development: fm-16, fm-8" in output
    assert "meta-training: fm-cnns" in output
