"""The device, the remaining time, processes and records of measurements."""

import gc
import logging
import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.records import Record, short
from harness.files import write_json

NOTE = 300  # maximum characters of an error message
GRACE = 60.0  # seconds to complete the current case after the deadline


class Skipped(Exception):
    """Raised by a case that does not apply or does not fit into the remaining time."""


class Cut(Exception):
    """Raised by a case that goes on in the next session."""


def check_installed(module: str) -> None:
    """Raises Skipped if there is no such module."""
    if find_spec(module) is None:
        raise Skipped(f"needs {module}")


@dataclass(frozen=True)
class Session:
    """Settings of measurements.

    device: "cuda" or "cpu". tiny: small shapes and few steps, for tests. folder: for
    records. deadline: of `time.monotonic()`; no case starts after it. command: the
    command line, for the records. data: folder of image data sets.
    """

    device: str
    tiny: bool
    folder: Path
    deadline: float
    command: str = ""
    data: Path | None = None

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def outcome(self, case: Callable[[], Record]) -> Record:
        """The result of a case, or the reason why there is none.

        It has a status: "ok", "failed", "skipped" or "cut". No case starts after the
        deadline.
        """
        if self.left() <= 0:
            return {"status": "skipped", "note": "no time was left"}
        try:
            return {"status": "ok", **case()}
        except Skipped as reason:
            return {"status": "skipped", "note": str(reason)}
        except Cut as reason:
            return {"status": "cut", "note": str(reason)}
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            note = f"{type(error).__name__}: {first_line}"[:NOTE]
            return {"status": "failed", "note": note}

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Frees unreferenced memory for the next case."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


class Records:
    """Records of cases, written to <folder>/cost.json after each case."""

    def __init__(self, session: Session):
        self.session = session
        self.path = session.folder / "cost.json"
        self.records: list[Record] = []
        self.machine = machine(session)
        self.write()

    def attempt(self, about: Record, case: Callable[[], Record]) -> Record:
        """Adds the record of a case.

        about: the first keys of the record, which describe the case.
        """
        start = time.monotonic()
        outcome = self.session.outcome(case)
        record = {**about, **outcome, "case_s": round(time.monotonic() - start, 2)}
        self.records.append(record)
        cells = (f"{key}={short(value)}" for key, value in record.items())
        print("  ".join(cells), file=sys.stderr, flush=True)
        self.write()
        self.session.free_memory()
        return record

    def write(self) -> None:
        write_json(self.path, {"machine": self.machine, "records": self.records})


def machine(session: Session) -> dict[str, Any]:
    """Machine, versions, date and commit of a measurement."""
    described: dict[str, Any] = {
        "device": session.device,
        **records.machine(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": session.command,
    }
    if session.is_cuda:
        gpu = torch.cuda.get_device_properties(0)
        described |= {
            "device": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "triton": find_spec("triton") is not None,
        }
    return described


def commit() -> str | None:
    """The commit of the checkout, with "-dirty" if anything but its results differs;
    None outside of a git repository."""
    describe = ["git", "describe", "--always", "--abbrev=12"]
    changes = ["git", "diff", "--name-only", "HEAD", "--", ":!/results"]
    try:
        name, files = (
            subprocess.check_output(
                command,
                cwd=Path(__file__).parent,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=10,
            )
            for command in (describe, changes)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return name.strip() + "-dirty" * bool(files) if name else None


def prepared(work: Callable[[Session], None], session: Session) -> None:
    """Does the work in this process, with full precision."""
    if not session.is_cuda:
        torch.set_num_threads(1)
    logging.getLogger("ngopt").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    work(session)


def in_process(work: Callable[[Session], None], session: Session) -> str | None:
    """Does the work in a new process. Returns the reason if it did not complete.

    A process does not survive CUDA errors.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=prepared, args=(work, session))
    process.start()
    process.join(max(session.left(), 0) + GRACE)
    if process.exitcode is None:
        process.terminate()
        process.join(GRACE)
        if process.exitcode is None:
            process.kill()
            process.join()
        return f"stopped {GRACE:.0f} s after its time was over"
    return None if process.exitcode == 0 else f"ended with exit code {process.exitcode}"
