"""Ranks: the processes of one job, on one machine or on several.

torchrun starts them, or `on_ranks` through the same elastic launcher; without either
there is one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from harness.errors import PlainError
from harness.interrupts import EXIT_STATUS

Settings = TypeVar("Settings")


class RankLost(PlainError):
    """Another process of the same job has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def owns(self, item: int) -> bool:
        """Whether this rank does an item; they take turns."""
        return item % self.count == self.number

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; exact where only one of them is not zero.

        Raises RankLost if another has ended.
        """
        if self.count > 1:
            with _noticing():
                dist.all_reduce(values)
        return values

    def gathered(self, own: dict[int, Any]) -> dict[int, Any]:
        """What all ranks have, on each. Raises RankLost if another has ended."""
        if self.count == 1:
            return own
        found: list[Any] = [None] * self.count
        with _noticing():
            dist.all_gather_object(found, own)
        return {key: value for some in found for key, value in some.items()}


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that this process was started with, connected while the body runs;
    one thread each."""
    if "RANK" not in os.environ:
        yield Ranks()
        return
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """The device that a process computes on; of several GPUs on a machine the one of
    its turn.

    Raises ValueError for another name than cpu and cuda, and for cuda where there is no
    GPU.
    """
    if name == "cpu":
        return torch.device(name)
    if name != "cuda":
        raise ValueError(f"device: expected cpu or cuda; got '{name}'")
    if not torch.cuda.is_available():
        raise ValueError("device: expected cpu where torch finds no GPU; got 'cuda'")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(name, number % torch.cuda.device_count())


def on_ranks(
    processes: int,
    work: Callable[[Settings], None],
    config: Settings,
    check: Callable[[Settings], object],
) -> None:
    """Runs work(config) in so many processes; in this one alone if it is a rank
    already.

    check: what raises ValueError for a config that cannot be, said before processes
    start.
    """
    if processes > 1 and "RANK" not in os.environ:
        check(config)
        _launch(processes, work, config)
    else:
        work(config)


def _launch(count: int, function: Callable[..., None], *args: Any) -> None:
    """Runs function(*args) in so many processes on this machine, as torchrun would.

    Raises RankLost if one of them fails, and KeyboardInterrupt for Ctrl-C.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=function.__qualname__,
    )
    try:
        elastic_launch(config, _recorded)(function, args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        said: Any = failure.message  # of an exception it is a dictionary
        why = (
            said["message"]
            if isinstance(said, dict)
            else f"exit code {failure.exitcode}"
        )
        raise RankLost(f"rank {rank} ended with {why}") from None
    except SignalException as error:  # in place of KeyboardInterrupt
        if error.sigval != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None


@record
def _recorded(function: Callable[..., None], args: tuple) -> None:
    """Runs a function so that whoever started the process learns of an exception."""
    try:
        function(*args)
    except KeyboardInterrupt:  # the process that started it says so
        sys.exit(EXIT_STATUS)


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost("another rank has ended") from error
