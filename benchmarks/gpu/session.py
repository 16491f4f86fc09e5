"""What all parts share: the device, the time that is left, and records."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record
from harness.files import write_json

NOTE = 300  # characters of an error message, at most


class Skipped(Exception):
    """A case that does not apply here, or does not fit into the time that is left."""


@dataclass(frozen=True)
class Session:
    """What a part is given.

    device: "cuda" or "cpu". tiny: small shapes and few steps, as a test. folder: for
    records. deadline: of `time.monotonic()`; after it no case begins. command: what was
    called, for the records.
    """

    device: str
    tiny: bool
    folder: Path
    deadline: float
    command: str = ""

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def check_left(self, seconds: float) -> None:
        """Raises Skipped if a case of so many seconds does not fit."""
        left = self.left()
        if left < seconds:
            raise Skipped(f"needs {seconds:.0f} s; {max(left, 0):.0f} s are left")

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def need_cuda(self) -> None:
        """Raises Skipped on a CPU."""
        if not self.is_cuda:
            raise Skipped("needs a GPU")

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Gives back what nothing refers to, so that the next case has all of it."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


class Records:
    """Records of a part, written to <folder>/<part>.json after each of them."""

    def __init__(self, session: Session, part: str):
        self.session = session
        self.path = session.folder / f"{part}.json"
        self.records: list[Record] = []
        self.machine = machine(session)
        self.write()

    def attempt(self, about: Record, case: Callable[[], Record]) -> Record:
        """Adds the record of a case: what it returns, or why there is nothing.

        about: what is measured, the first keys of the record. status: "ok", "failed" or
        "skipped", unless the case says so itself.
        """
        start = time.monotonic()
        try:
            self.session.check_left(0)
            found = {"status": "ok", **case()}
        except Skipped as reason:
            found = {"status": "skipped", "note": str(reason)}
        except Exception as error:
            found = {"status": "failed", "note": note_of(error)}
        seconds = round(time.monotonic() - start, 2)
        record = {**about, **found, "case_s": seconds}
        self.records.append(record)
        print(_line(record), file=sys.stderr, flush=True)
        self.write()
        self.session.free_memory()
        return record

    def write(self) -> None:
        write_json(
            self.path, {"machine": self.machine, "records": as_json(self.records)}
        )


def _line(record: Record) -> str:
    """What is printed of a record as soon as it is there: its plain values."""
    kinds = str, int, float, bool
    shown = {key: x for key, x in record.items() if isinstance(x, kinds)}
    return "  ".join(f"{key}={_short(value)}" for key, value in shown.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def note_of(error: BaseException) -> str:
    """The kind of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:NOTE]


def as_json(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: as_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    return value


def machine(session: Session) -> dict[str, Any]:
    """What a part is measured on, when, and with which code."""
    found: dict[str, Any] = {
        "device": session.device,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": session.command,
    }
    if session.is_cuda:
        gpu = torch.cuda.get_device_properties(0)
        found["device"] = gpu.name
        found["memory_gib"] = round(gpu.total_memory / 2**30, 1)
        found["gpus"] = torch.cuda.device_count()
        found["cuda"] = torch.version.cuda
        found["triton"] = find_spec("triton") is not None
    return found


def commit() -> str | None:
    """The commit of the checkout, where it is one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
