"""How every program starts: a config dataclass becomes the command line, a user's mistake one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from tasks.datasets import DatasetUnavailable

Config = TypeVar("Config")


def main(config: type[Config], run: Callable[[Config], None], description: str | None) -> None:
    """Parses the command line and runs the program; what the user got wrong ends it with a message and status 2."""
    try:
        run(tyro.cli(config, description=description))
    except (ValueError, DatasetUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
