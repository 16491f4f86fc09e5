"""How every program starts: a config dataclass becomes the command line,
a user's mistake one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import tyro

from harness.errors import PlainError
from harness.interrupts import EXIT_STATUS

Config = TypeVar("Config")


def main(
    config: type[Config], run: Callable[[Config], None], description: str | None
) -> None:
    """Parses the command line and runs the program; what the user got wrong ends it
    with a message and status 2, Ctrl-C with one and status 130.

    Programs have one thread a process. So results do not depend on the number of
    processes, and a core that is busy elsewhere does not hold the others up: small
    networks gain little from a second thread and can lose ten-fold.
    """
    _started(lambda: run(tyro.cli(config, description=description)))


def commands(
    known: Mapping[str, tuple[type, Callable[[Any], None]]], description: str | None
) -> None:
    """The same for a program whose first word says what to do.

    known: of every word its config and what it runs.
    """

    def run() -> None:
        configs = {name: config for name, (config, _) in known.items()}
        found = tyro.extras.subcommand_cli_from_dict(configs, description=description)
        (chosen,) = (run for config, run in known.values() if type(found) is config)
        chosen(found)

    _started(run)


def _started(run: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    try:
        run()
    except (ValueError, PlainError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        told = f"interrupted: {error}" if str(error) else "interrupted"
        print(f"\n{told}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
