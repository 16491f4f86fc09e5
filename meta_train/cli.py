"""How every program starts: a config dataclass becomes the command line, a user's mistake one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import tyro

from meta_train.distributed import RankLost
from tasks.datasets import DatasetUnavailable

Config = TypeVar("Config")


def main(config: type[Config], run: Callable[[Config], None], description: str | None) -> None:
    """Parses the command line and runs the program; what the user got wrong ends it with a message and status 2.

    Programs have one thread a process. So results do not depend on the number of processes, and a core that is busy
    elsewhere does not hold the others up: small networks gain little from a second thread and can lose ten-fold.
    """
    torch.set_num_threads(1)
    try:
        run(tyro.cli(config, description=description))
    except (ValueError, DatasetUnavailable, RankLost) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
