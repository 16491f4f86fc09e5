"""Measures the cost of a step on a GPU, and trains a language model.

    python -m benchmarks.gpu --minutes 8 --folder gpu
    python -m benchmarks.gpu --minutes 2 --folder gpu             # a quick look
    python -m benchmarks.gpu --minutes 8 --folder gpu --only lm
    python -m benchmarks.gpu --device cpu --tiny --folder gpu   # all of it, as a test

Parts, in this order: `cost` (milliseconds, launches and memory of a step, beside other
optimizers) and `lm` (a language model on the Python source files of the machine). Each
part runs in its own process, within its share of the minutes plus the time that earlier
parts left. The most important cases come first. Cases that do not fit are skipped and
listed. `pytest -m gpu` checks that steps on a GPU are correct.

<folder>/<part>.json is written after every case. gpu.json has all parts in the folder,
and gpu.txt the table that is printed last. Neither internet access nor `tokenizers` is
needed. The exit status is 1 if a case failed, and 2 if
nothing could be measured.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from benchmarks.gpu.session import Session, in_process
from benchmarks.gpu.summary import merged, summary
from harness.files import make_folder, write_json

# Parts and their shares of the minutes.
SHARES = {"cost": 0.5, "lm": 0.5}


def deadlines(parts: Sequence[str], start: float, minutes: float) -> dict[str, float]:
    """The time at which each part has to end; the next part gets unused time."""
    total = sum(SHARES[part] for part in parts)
    used = accumulate(SHARES[part] / total for part in parts)
    return {part: start + 60 * minutes * u for part, u in zip(parts, used, strict=True)}


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts")
    parser.add_argument("--folder", type=Path, default=Path("gpu"), help="for records")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=[*SHARES])
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
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    options = options_of(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python -m benchmarks.gpu", *given])
    if problem := problem_of(options):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    make_folder(options.folder)
    parts = [part for part in SHARES if part in options.only]
    ended: dict[str, str] = {}
    for part, deadline in deadlines(parts, start, options.minutes).items():
        (options.folder / f"{part}.json").unlink(missing_ok=True)
        session = Session(
            options.device, options.tiny, options.folder, deadline, command
        )
        if reason := in_process(part, session):
            ended[part] = reason
    contents = merged(options.folder, list(SHARES), ended)
    write_json(options.folder / "gpu.json", contents)
    text, has_failures = summary(contents)
    (options.folder / "gpu.txt").write_text(text + "\n")
    print(text)
    if has_failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
