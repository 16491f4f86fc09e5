"""The command `ngopt`: bundled weights, graphs of networks, races of optimizers."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import ngopt
from ngopt.audit import __main__ as audit_command
from ngopt.graph import command as graph_command
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet
from ngopt.pretrained import (
    LearnedOptimizer,
    list_pretrained,
    load_pretrained,
    weights_hash,
)
from ngopt.pretrained.weights_file import recipe_and_table, tensors_of
from ngopt.race.optimizers import OPTIMIZERS
from ngopt.specialized.storage import rates_of

DEFAULT = "(default: %(default)s)"
FAILED = 2  # exit status after an error
LISTED = "name", "kind", "class", "parameters", "sha256"  # by `ngopt list`


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error, which is one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path.cwd()))  # modules of the user
    try:
        if words[:1] == ["graph"]:
            graph_command.run(words[1:])
            return 0
        if words[:1] == ["audit"]:
            return audit_command.main(words[1:])
        options = _parser().parse_args(words)
        options.run(options)
    except BrokenPipeError:
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ngopt", description=__doc__)
    version = f"ngopt {ngopt.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="command")
    listing = commands.add_parser("list", help="bundled weights")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)
    info = commands.add_parser("info", help="what a weights file contains")
    info.add_argument("weights", help="a bundled name or the path of a file")
    info.add_argument("--json", action="store_true")
    text = "your own metanet, which is imported, if the file names one"
    info.add_argument("--metanet", metavar="module:Class", help=text)
    info.set_defaults(run=_info)
    commands.add_parser("graph", help="the neural graph of a network: see --help")
    text = "whether an optimizer has the right parameters: see --help"
    commands.add_parser("audit", help=text)
    text = "train your problem with several optimizers"
    race = commands.add_parser("race", help=text)
    race.set_defaults(run=_race)
    race.add_argument("problem", help="module with model(), batches(), loss()")
    default = ["adamw", "muon", "ngopt"]
    names = f"of {', '.join(OPTIMIZERS)} (default: {' '.join(default)})"
    option = race.add_argument
    option("--optimizers", nargs="+", metavar="NAME", default=default, help=names)
    option("--steps", type=int, default=300, help=f"of a run {DEFAULT}")
    option("--seeds", type=int, default=1, help=f"runs at the best rate {DEFAULT}")
    option("--device", default="cpu", help=f"of torch {DEFAULT}")
    option("--folder", type=Path, default="runs/race", help=f"of the report {DEFAULT}")
    option("--json", action="store_true", help="print JSON, not a table")
    text = "the best rule for a family of training runs"
    specialize = commands.add_parser("specialize", help=text)
    specialize.set_defaults(run=_specialize)
    specialize.add_argument("problem", help="module with member(seed)")
    option = specialize.add_argument
    text = f"steps of the runs, shortest:longest {DEFAULT}"
    option("--horizons", default="50:200", help=text)
    text = f"of search and evolution {DEFAULT}"
    option("--minutes", type=float, default=20.0, help=text)
    text = f"of the results {DEFAULT}"
    option("--folder", type=Path, default="runs/specialize", help=text)
    return parser


def describe(weights: str) -> dict[str, Any]:
    """What a weights file contains, as JSON. weights: a bundled name or a path."""
    rule = load_pretrained(weights)
    part: Any = rule
    tensors = tensors_of(rule)
    if isinstance(rule, LearnedOptimizer):
        part = rule.metanet
        tensors = dict(part.named_parameters())
    recipe, table = recipe_and_table(rule)
    constants = dict(vars(getattr(part, "config", part)))
    constants.pop("multiplier", None)  # its tensors are counted
    kind = "base rule" if part is rule else "metanet"
    rates = rates_of(rule)
    if rates is not None:
        kind = "rule for one family"
        constants = {"horizons": rates.horizons, "shapes": rates.shapes, **constants}
    return {
        "name": weights,
        "kind": kind,
        "class": type(part).__name__,
        "parameters": sum(x.numel() for x in tensors.values()),
        "sha256": weights_hash(rule),
        "config": constants,
        "recipe": recipe,
        "table": table,
    }


def _list(options: argparse.Namespace) -> None:
    described = map(describe, list_pretrained())
    rows = [{key: x[key] for key in LISTED} for x in described]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'name':12}  {'kind':9}  parameters")
    for row in rows:
        print(f"{row['name']:12}  {row['kind']:9}  {row['parameters']:>10,}")


def _info(options: argparse.Namespace) -> None:
    if options.metanet is not None:
        find_metanet(options.metanet, METANETS, may_import=True)
    description = describe(options.weights)
    if options.json:
        print(json.dumps(description))
        return
    for key in LISTED:
        print(f"{key:10}  {description[key]}")
    for key, value in description["config"].items():
        print(f"{'config':10}  {key} = {value}")
    if description["kind"] == "rule for one family":
        for key, value in description["table"].items():
            print(f"{'measured':10}  {key} = {value}")
    stages = len(description["recipe"]["stages"])
    print(f"{'recipe':10}  {stages} stages; --json prints it")


def _race(options: argparse.Namespace) -> None:
    try:
        race = import_module("ngopt.race.run")
    except ImportError as error:
        raise ValueError(
            f"race: needs {error.name}. Install it: pip install 'ngopt[race]'"
        ) from error
    settings = race.Settings(
        tuple(options.optimizers),
        options.steps,
        options.seeds,
        _device(options.device),
        options.folder,
        options.json,
    )
    race.run(options.problem, settings)


def _specialize(options: argparse.Namespace) -> None:
    try:
        program = import_module("meta_train.specialize.run")
    except ImportError as error:
        raise ValueError(
            f"specialize: needs {error.name}. Run it in the folder of a checkout of "
            "ngopt, after pip install -e '.[train]'"
        ) from error
    first, _, last = options.horizons.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(
            f"specialize: expected --horizons such as 25:100; got '{options.horizons}'"
        )
    horizons = int(first), int(last)
    program.run(
        program.Settings(options.problem, horizons, options.minutes, options.folder)
    )


def _device(name: str) -> torch.device:
    """Raises ValueError if torch does not know the device, or cannot use it."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"race: expected a device that torch can use; got '{name}' (--device). "
            f"torch: {reason}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
