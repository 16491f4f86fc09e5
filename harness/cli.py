"""Starts programs: config dataclasses become command lines, errors one line."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from harness.errors import EXIT_STATUS, PlainError
from ngopt.importing import INSTALLED, frames_outside

_ROOT = Path(__file__).parents[1]
_OWN = ("benchmarks", "harness", "meta_train", "ngopt", "tasks")
_FOLDERS = (*INSTALLED, *(_ROOT / name for name in _OWN))
Config = TypeVar("Config")


def main(
    config: type[Config], run: Callable[[Config], None], description: str | None
) -> None:
    """Parses the command line and runs the program.

    ValueError and PlainError end it with a message and status 2, Ctrl-C with a message
    and status 130. A ValueError from code of the user keeps its traceback. A process
    has one thread: results do not depend on the number of processes, and small networks
    gain little from a second thread.
    """
    _run_program(lambda: run(tyro.cli(config, description=description)))


def commands(
    known: Mapping[str, tuple[type, Callable[[Any], None]]], description: str | None
) -> None:
    """`main` for a program with subcommands: config and function by name."""

    def run() -> None:
        configs = {name: config for name, (config, _) in known.items()}
        config = tyro.extras.subcommand_cli_from_dict(configs, description=description)
        dict(known.values())[type(config)](config)

    _run_program(run)


def _run_program(run: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    try:
        run()
    except (ValueError, PlainError) as error:
        if frames_outside(_FOLDERS, error):  # code of the user
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        message = f"interrupted: {error}" if str(error) else "interrupted"
        print(f"\n{message}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
