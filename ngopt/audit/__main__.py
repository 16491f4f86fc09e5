"""Tells whether an optimizer has the right parameters of a model:
`ngopt audit package:Model --optimizer package:make_optimizer --example-shape 2 16`."""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from ngopt.audit.report import audit
from ngopt.graph.command import add_example_options, example_of_options, load_model
from ngopt.importing import call_object, load_object

WRONG = 1  # exit status if something is wrong


def make_optimizer(path: str, model: nn.Module) -> Any:
    """What the function at "module:name" returns for the model, or for its parameters
    if that is what its first argument is called.

    Raises ValueError if it fails.
    """
    make = load_object(path)
    if not callable(make):
        raise ValueError(f"'{path}': expected a function of the model; got {make!r}")
    first = next(iter(inspect.signature(make).parameters), "model")
    argument = model.parameters() if first.startswith("param") else model
    return call_object(path, argument, given="with the model")


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="ngopt audit", description=__doc__)
    text = "of a torch.nn.Module, or of a function or class that makes one"
    parser.add_argument("model", metavar="module:name", help=text)
    text = "of a function of the model that returns its optimizer, or a list of them"
    parser.add_argument("--optimizer", metavar="module:name", required=True, help=text)
    add_example_options(parser)
    text = "the optimizers find several matrices in a parameter by themselves"
    parser.add_argument("--splits", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args(argv)
    model = load_model(options.model)
    example = example_of_options(options)
    optimizer = make_optimizer(options.optimizer, model)
    result = audit(optimizer, model, example, options.splits)
    print(json.dumps(result.to_json()) if options.json else result)
    return 0 if result.is_right else WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
