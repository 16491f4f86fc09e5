"""Prints and draws the neural graph of a model:
`ngopt graph torchvision.models:resnet18 --draw resnet18.svg`."""

import argparse
from collections.abc import Sequence
from time import perf_counter
from typing import Any, NoReturn

import torch
from torch import nn

from ngopt.graph import build_graph
from ngopt.graph.drawing.draw import draw, format_of
from ngopt.graph.views.networkx_and_pyg import require
from ngopt.importing import call_object, load_object


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> argparse.ArgumentParser:
    options = _Parser(
        prog="ngopt graph",
        description="Shows what a model looks like as a neural graph.",
    )
    options.add_argument(
        "model",
        metavar="module:name",
        help="of a torch.nn.Module, or of a function or class that makes one",
    )
    add_example_options(options)
    options.add_argument(
        "--draw", metavar="FILE", help="draws the graph into a .png or .svg file"
    )
    return options


def add_example_options(options: argparse.ArgumentParser) -> None:
    """Options of a model's example input."""
    options.add_argument(
        "--example-shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of the model's input; guessed if not given",
    )
    options.add_argument(
        "--dtype",
        choices=("float32", "int64"),
        default="float32",
        help="of the input: random numbers, or zeros for int64",
    )
    options.add_argument(
        "--example",
        metavar="module:name",
        help="of the input, or of a function that makes it, in place of a shape",
    )


def load_model(path: str) -> nn.Module:
    """The module at "module:name", or the module that a function or class there makes
    without arguments.

    Raises ValueError that names the wrong part of the path.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"expected a model as module:name; got '{path}'")
    model = load_object(path)
    if not isinstance(model, nn.Module) and callable(model):
        model = call_object(path)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"'{path}': expected a torch.nn.Module or a function that makes one; got "
            f"{type(model).__name__}"
        )
    return model


def example_of_options(options: argparse.Namespace) -> Any:
    """The example input of a model, None if it is to be guessed."""
    shape = options.example_shape
    if options.example is not None:
        if shape is not None:
            raise ValueError("expected --example or --example-shape; got both")
        example = load_object(options.example)
        return call_object(options.example) if callable(example) else example
    if shape is None:
        return None
    if min(shape) < 1:
        given = " ".join(map(str, shape))
        raise ValueError(f"--example-shape: expected positive numbers; got {given}")
    if options.dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    return torch.randn(shape)


def run(argv: Sequence[str]) -> None:
    """Raises ValueError, ImportError or OSError."""
    arguments = parser().parse_args(argv)
    if arguments.draw is not None:
        format_of(arguments.draw)
        require("matplotlib", "draw")
    example = example_of_options(arguments)
    model = load_model(arguments.model)
    start = perf_counter()
    graph = build_graph(model, example)
    seconds = perf_counter() - start
    print(graph.summary())
    print(f"built in {seconds:.2f} s")
    if arguments.draw is not None:
        draw(graph, arguments.draw, list(model.parameters()))
        print(f"drawn into {arguments.draw}")
