from functools import partial
from types import SimpleNamespace

import pytest
from torch import nn

from meta_train.problems.images import MNIST_14
from meta_train.problems.networks.dense import mlp
from meta_train.problems.problem_tables import read_problems

TABLE = """list,name,objective,data,network,batch_size,steps
development,small,classify,MNIST_14,"mlp((196, 10), nn.GELU)",64,1_000
test,nested,regress,own(scale=-0.5),"outer(mlp((3, 2)), own, 'x', None)",,20
"""


Problem = SimpleNamespace


def parts(function):
    assert isinstance(function, partial)
    return function.func, function.args, function.keywords


def own(scale):
    return scale


def outer(*given):
    return given


def test_cells_are_functions_without_arguments(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    names = {"own": own, "outer": outer, "classify": Problem, "regress": Problem}
    (given, small), (_, nested) = read_problems(path, names)
    assert (given, small.name) == ("development", "small")
    assert small.data is MNIST_14
    assert parts(small.build) == (mlp, ((196, 10), nn.GELU), {})
    assert (small.batch_size, small.steps) == (64, 1000)
    assert nested.data() == -0.5
    function, (inner, *others), options = parts(nested.build)
    assert function is outer and not options
    assert parts(inner) == (mlp, ((3, 2),), {})
    assert others == [own, "x", None]
    assert nested.batch_size is None


def test_a_name_that_is_not_known_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE.replace("mlp(", "mpl("))
    with pytest.raises(ValueError, match=r"table.csv, small: expected .* got .*mpl\("):
        list(read_problems(path, {"classify": Problem}))
