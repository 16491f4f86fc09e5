"""Runs parts in their own processes, so that a crash ends only one part."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import warnings

import torch

from benchmarks.gpu.session import Session

GRACE = 30.0  # seconds to complete the current case after the deadline


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
