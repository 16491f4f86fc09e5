"""Measures the cost of a step on a GPU, and trains networks there.

    python -m benchmarks.gpu --minutes 8 --folder gpu            # the cost of a step
    python -m benchmarks.gpu --next --minutes 8 --folder gpu     # the next runs
    python -m benchmarks.gpu --list                              # runs and results
    python -m benchmarks.gpu --device cpu --tiny --folder gpu    # on a CPU, as a test

The cost is milliseconds, launches and memory of a step, beside other optimizers. The
most important cases come first; those that do not fit into the minutes are skipped and
listed. <folder>/cost.json is written after every case.

The runs are a list in order of value: tests of steps on a GPU, and training runs of at
most seven minutes (on an H100) whose results are missing. `--next` does as many as fit,
in order, and writes each into results/gpu.json. A run that the deadline cuts goes on in
the next call with the same folder. Texts are the source files of the machine; runs on
CIFAR-10 need `--data` with cifar10.safetensors.

The exit status is 1 if a case failed, and 2 if nothing could be measured.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import cost, ledger
from benchmarks.gpu.session import Session, in_process
from benchmarks.records import Record, short, table
from harness.files import make_folder, read_json

SHOWN = (
    "network", "optimizer", "ms", "worst_ms", "look_ms", "device_ms", "kernels",
    "copies", "transient_mib", "first_transient_mib", "state",
)  # fmt: skip


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--next", action="store_true", help="do the next runs")
    parser.add_argument("--list", action="store_true", help="print runs and results")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, default=Path("gpu"), help="for records")
    parser.add_argument(
        "--record", type=Path, default=ledger.RECORD, help="JSON file of the runs"
    )
    parser.add_argument("--data", type=Path, help="folder of image data sets")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, few steps")
    return parser.parse_args(arguments)


def problem_of(options: argparse.Namespace) -> str | None:
    """An error message if nothing can be measured, else None."""
    if options.device == "cpu" and not options.tiny:
        return "--device cpu: expected --tiny; got full shapes. Add --tiny."
    if options.device == "cuda" and not torch.cuda.is_available():
        return (
            f"--device cuda: expected a GPU; torch {torch.__version__} finds none. "
            "Run this on a machine with a GPU, or add --device cpu --tiny for a test."
        )
    if options.tiny and options.next and options.record == ledger.RECORD:
        return "--tiny: expected --record with another file; got the project's record."
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    options = options_of(arguments)
    if options.list:
        print(ledger.report(ledger.results(options.record)))
        return
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python -m benchmarks.gpu", *given])
    if problem := problem_of(options):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    folder = options.folder / "tiny" if options.tiny else options.folder
    make_folder(folder)
    deadline = start + 60 * options.minutes
    session = Session(
        options.device, options.tiny, folder, deadline, command, options.data
    )
    if options.next:
        has_failures = ledger.make_progress(session, options.record)
        print(ledger.report(ledger.results(options.record)))
    else:
        has_failures = measure_cost(session)
    if has_failures:
        sys.exit(1)


def measure_cost(session: Session) -> bool:
    """Writes and prints the cost of a step. Returns whether a case failed."""
    path = session.folder / "cost.json"
    path.unlink(missing_ok=True)
    ended = in_process(cost.run, session)
    empty = {"machine": {}, "records": []}
    content = read_json(path, "record") if path.exists() else empty
    text, has_failures = summary(content, ended)
    print(text)
    return has_failures


def summary(content: Mapping[str, Any], ended: str | None) -> tuple[str, bool]:
    """The table of a record, and whether a case failed.

    ended: why the process did not complete; None if it did.
    """
    machine, records = content["machine"], content["records"]
    device, torch, date = map(machine.get, ("device", "torch", "date"))
    measured = [record for record in records if "ms" in record]
    printed = [{key: short(record.get(key)) for key in SHOWN} for record in measured]
    title = f"cost ({device}, torch {torch}, {date})"
    remarks = remarks_with("failed", "FAILED ", records)
    if ended is not None:
        remarks.append(f"FAILED   the process {ended}")
    has_failures = bool(remarks)
    remarks += remarks_with("skipped", "skipped", records)
    measurements = f"{title}\n{table(printed)}" if printed else f"{title}: nothing"
    return "\n".join([measurements, *remarks]), has_failures


def remarks_with(status: str, word: str, records: Sequence[Record]) -> list[str]:
    """A line for each record with a status: the case, and why it has that status."""
    return [
        f"{word}  {record['network']}, {record['optimizer']}: {record['note']}"
        for record in records
        if record["status"] == status
    ]


if __name__ == "__main__":
    main()
