"""Ranks: the processes of one job, on one machine or on several.

torchrun starts them, or `run_on_ranks` with the same launcher. Otherwise there is one.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from harness.errors import EXIT_STATUS, PlainError

Settings = TypeVar("Settings")


class RankLost(PlainError):
    """Another process of the same job has ended."""


@dataclass(frozen=True)
class Ranks:
    """The number of this process, and of all."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def owns(self, item: int) -> bool:
        """Whether an item is assigned to this rank, round-robin."""
        return item % self.count == self.number

    def all_gather(self, items: dict[int, Any]) -> dict[int, Any]:
        """The items of all ranks, on each. Raises RankLost if another has ended."""
        if self.count == 1:
            return items
        items_by_rank: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(items_by_rank, items)
        except RuntimeError as error:
            raise RankLost("another rank has ended") from error
        merged: dict[int, Any] = {}
        for rank_items in items_by_rank:
            merged |= rank_items
        return merged


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Connects the ranks that this process was started with, one thread each."""
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
    """The device of this process: of several GPUs the one of its local rank.

    Raises ValueError for names other than cpu and cuda, and for cuda without a GPU.
    """
    if name == "cpu":
        return torch.device(name)
    if name != "cuda":
        raise ValueError(f"device: expected cpu or cuda; got '{name}'")
    if not torch.cuda.is_available():
        raise ValueError("device: expected cpu where torch finds no GPU; got 'cuda'")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(name, number % torch.cuda.device_count())


def run_on_ranks(
    processes: int,
    work: Callable[[Settings], None],
    config: Settings,
    check: Callable[[Settings], object],
) -> None:
    """Runs work(config) in so many processes on this machine, as torchrun would, or in
    this one if it is a rank already.

    check: called before processes start, to raise ValueError for a wrong config.

    Raises RankLost if a process fails, and KeyboardInterrupt for Ctrl-C.
    """
    if processes <= 1 or "RANK" in os.environ:
        work(config)
        return
    check(config)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=work.__qualname__,
    )
    try:
        elastic_launch(launch, _recorded)(work, config)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message: Any = failure.message  # a dictionary for exceptions
        reason = f"exit code {failure.exitcode}"
        if isinstance(message, dict):
            reason = message["message"]
        raise RankLost(f"rank {rank} ended with {reason}") from None
    except SignalException as error:  # in place of KeyboardInterrupt
        if error.sigval != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None


@record
def _recorded(work: Callable[[Settings], None], config: Settings) -> None:
    """Runs a rank's work, and reports an exception to the launcher."""
    try:
        work(config)
    except KeyboardInterrupt:  # the launcher prints the message
        sys.exit(EXIT_STATUS)
