"""The device, the remaining time, the process and the records of a part."""

import gc
import importlib
import logging
import multiprocessing
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.records import Record
from harness.files import write_json

NOTE = 300  # maximum characters of an error message
GRACE = 30.0  # seconds to complete the current case after the deadline


class Skipped(Exception):
    """Raised by a case that does not apply or does not fit into the remaining time."""


@dataclass(frozen=True)
class Session:
    """Settings of a part.

    device: "cuda" or "cpu". tiny: small shapes and few steps, for tests. folder: for
    records. deadline: of `time.monotonic()`; no case starts after it. command: the
    command line, for the records.
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
        """Raises Skipped if a case of this duration does not fit."""
        left = self.left()
        if left < seconds:
            raise Skipped(f"needs {seconds:.0f} s; {max(left, 0):.0f} s are left")

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
    """Records of a part, written to <folder>/<part>.json after each case."""

    def __init__(self, session: Session, part: str):
        self.session = session
        self.path = session.folder / f"{part}.json"
        self.records: list[Record] = []
        self.machine = machine(session)
        self.write()

    def attempt(self, about: Record, case: Callable[[], Record]) -> Record:
        """Adds the record of a case: its result, or the reason why there is none.

        about: the first keys of the record, which describe the case. The record has a
        status: "ok", "failed" or "skipped".
        """
        start = time.monotonic()
        try:
            self.session.check_left(0)
            outcome = {"status": "ok", **case()}
        except Skipped as reason:
            outcome = {"status": "skipped", "note": str(reason)}
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            note = f"{type(error).__name__}: {first_line}"[:NOTE]
            outcome = {"status": "failed", "note": note}
        record = {**about, **outcome, "case_s": round(time.monotonic() - start, 2)}
        self.records.append(record)
        cells = []
        for key, value in record.items():
            if isinstance(value, float):
                cells.append(f"{key}={value:.4g}")
            elif isinstance(value, str | int):
                cells.append(f"{key}={value}")
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
    """The commit of the checkout, None outside of a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    try:
        output = subprocess.check_output(
            command, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip() or None


def run_part(part: str, session: Session) -> None:
    """Runs a part in this process."""
    if not session.is_cuda:
        torch.set_num_threads(1)
    logging.getLogger("ngopt").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", "Learning rate changed between steps", UserWarning
    )
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    importlib.import_module(f"benchmarks.gpu.{part}").run(session)


def in_process(part: str, session: Session) -> str | None:
    """Runs a part in a new process. Returns the reason if it did not complete.

    A process does not survive CUDA errors, so parts are in different processes.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_part, args=(part, session))
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
