"""Runs worth having on a GPU, in order of value, and their results on record."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from benchmarks.gpu.images import NETWORKS, Images
from benchmarks.gpu.lm import FULL, GPT_2, HEADERS, SOURCES, TINY, Text, load_corpus
from benchmarks.gpu.session import (
    Cut,
    Session,
    Skipped,
    check_installed,
    in_process,
    machine,
)
from benchmarks.gpu.training import ADAMW, DEFAULT, MUON, SOAP, Data, Run, Training
from benchmarks.records import Record, short
from harness.files import make_folder, read_checkpoint, read_json, write_json
from harness.tables import Row, markdown_table
from ngopt.pretrained.tensor_files import atomic_write

RATES = {ADAMW: (0.0005, 0.001, 0.002, 0.004), MUON: (0.001, 0.002, 0.004, 0.008)}
WIDTHS = 256, 512, 1024, 2048
NARROWEST = f"gpt-{WIDTHS[0]}"
HEAD_WIDTH = 64
CHECKS = "pytest -m gpu"
CHECK_FILES = "tests/ngopt/test_gpu.py", "tests/benchmarks/test_gpu.py"
PRETRAINED = Run("gpt-512", ADAMW, 0.001, 1000)
FINE_TUNED = "headers"
CHECK_SECONDS = 240.0
START_SECONDS = 20.0  # a process needs ten of them before its first step
ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "gpu.json"
KEY = "ledger"  # in the record

Results = dict[str, Record]
"""Records by the names of runs. status: "ok", "cut", "skipped" or "failed"."""


def _widths() -> Iterator[Run]:
    for width, scale in product(WIDTHS, (1.0, 0.5, 2.0)):
        yield Run(f"gpt-{width}", DEFAULT, scale, 300)
    for optimizer, rates in RATES.items():
        yield from (Run(NARROWEST, optimizer, lr, 300) for lr in rates)
        yield from (Run(f"gpt-{width}", optimizer, None, 300) for width in WIDTHS[1:])


def _gpt_512() -> Iterator[Run]:
    best = (DEFAULT, 1.0), (MUON, 0.004), (ADAMW, 0.001)
    for seed, each in product((0, 1, 2), best):
        yield Run("gpt-512", *each, 1000, seed)
    yield Run("gpt-512", MUON, 0.008, 1000)
    yield from (Run("gpt-512", SOAP, lr, 1000) for lr in (0.001, 0.003, 0.01))
    yield from (Run("gpt-512", *each, 3000) for each in best)


def _tuned(
    data: str, steps: int, adamw: tuple[float, ...], muon: tuple[float, ...]
) -> Iterator[Run]:
    yield Run(data, DEFAULT, 1.0, steps)
    yield from (Run(data, ADAMW, lr, steps) for lr in adamw)
    yield from (Run(data, MUON, lr, steps) for lr in muon)


EPOCHS_20 = 20 * 358
IMAGE_RATES = (0.0005, 0.001, 0.002), (0.001, 0.002, 0.004)
GROUPS: dict[str, list[Run]] = {
    "GPTs of width 256 to 2,048, 300 steps": [*_widths()],
    "GPT with 34 M parameters, three seeds; SOAP; 3,000 steps": [*_gpt_512()],
    "GPT-2 (124 M with tied tables, untied here), 1,000 steps": [
        *_tuned("gpt-2", 1000, (0.0005, 0.001, 0.002), (0.002, 0.004, 0.008))
    ],
    "ResNet-18 and a ViT on CIFAR-10, 20 epochs": [
        run for name in NETWORKS for run in _tuned(name, EPOCHS_20, *IMAGE_RATES)
    ],
    "the GPT with 34 M parameters, trained with AdamW, fine-tuned on C++ headers": [
        *_tuned(FINE_TUNED, 300, (0.0001, 0.0003, 0.001), (0.0003, 0.001, 0.003))
    ],
}
RUNS = {str(run): run for runs in GROUPS.values() for run in runs}
CHECKS_OF = "CUDA graphs, kernels, GradScaler, bfloat16, NCCL, CPU offload"


def names() -> list[str]:
    """All runs, the most valuable first."""
    return [CHECKS, *RUNS]


def results(path: Path) -> Results:
    """What is on record; empty if there is no such file."""
    return read_json(path, "record").get(KEY, {}) if path.exists() else {}


def make_progress(session: Session, path: Path) -> bool:
    """Runs what is neither measured nor failed, in order, until the time is over.

    Each has its own process, which writes its result into the record. Returns whether
    one failed.
    """
    has_failures = False
    for name in names():
        before = results(path).get(name, {})
        if before.get("status") in ("ok", "failed"):
            continue
        if session.left() < START_SECONDS:
            break
        reason = in_process(partial(measure, name, path), session)
        if reason and results(path).get(name, {}) == before:
            status = "cut" if session.left() <= 0 else "failed"
            write(path, name, {"status": status, "note": f"the process {reason}"})
        record = results(path)[name]
        has_failures |= record["status"] == "failed"
        print(_line(name, record), file=sys.stderr, flush=True)
    return has_failures


def measure(name: str, path: Path, session: Session) -> None:
    """Runs one of `names`, and writes its result into the record."""
    case = partial(checks, session)
    if name in RUNS:
        case = partial(trained, session, RUNS[name], path)
    outcome = session.outcome(case)
    write(path, name, {**outcome, "machine": machine(session)})


def write(path: Path, name: str, record: Record) -> None:
    contents = read_json(path, "record") if path.exists() else {}
    contents.setdefault(KEY, {})[name] = record
    make_folder(path.parent)
    write_json(path, contents)


def trained(session: Session, run: Run, path: Path) -> Record:
    """The record of a training run."""
    if run.lr is None:
        run = run._replace(lr=best_rate(run.optimizer, results(path)))
    weights = pretrained(session) if run.data == FINE_TUNED else None
    data = data_of(run.data, session)
    file = "".join(x if x.isalnum() else "-" for x in str(run)) + ".pt"
    outcome = Training(session, data, run, weights).finish(session.folder / file)
    return {"lr": run.lr, **data.about, **outcome}


def best_rate(optimizer: str, measured: Results) -> float:
    """The learning rate with the lowest loss on the narrowest GPT."""
    losses = {}
    for lr in RATES[optimizer]:
        record = measured.get(str(Run(NARROWEST, optimizer, lr, 300)), {})
        if record.get("status") != "ok":
            raise Skipped(f"needs all rates of {optimizer} on {NARROWEST}")
        losses[lr] = inf if record["validation"] is None else record["validation"]
    return min(losses, key=losses.__getitem__)


def data_of(name: str, session: Session) -> Data:
    """Data and network of a run."""
    if name in NETWORKS:
        return Images(session, name)
    if session.tiny:
        size = TINY
    elif name == "gpt-2":
        size = GPT_2
    else:
        width = PRETRAINED.data if name == FINE_TUNED else name
        width = int(width.removeprefix("gpt-"))
        size = FULL._replace(width=width, heads=width // HEAD_WIDTH)
    files = HEADERS if name == FINE_TUNED else SOURCES
    if not session.tiny:  # losses in bytes are not comparable
        check_installed("tokenizers")
    corpus = load_corpus(session, size.tokens, size.vocabulary, files)
    return Text(session, size, corpus)


def pretrained(session: Session) -> dict[str, Tensor]:
    """Weights to fine-tune, trained if the session's folder has none."""
    path = session.folder / "pretrained.pt"
    if not path.exists():
        training = Training(session, data_of(PRETRAINED.data, session), PRETRAINED)
        training.finish(session.folder / "pretraining.pt")
        with atomic_write(path) as part:
            torch.save(training.model.state_dict(), part)
    return read_checkpoint(path)


def checks(session: Session) -> Record:
    """Runs the tests of steps on a GPU. Raises RuntimeError if one fails."""
    check_installed("pytest")
    if session.left() < CHECK_SECONDS:
        raise Skipped(f"needs {CHECK_SECONDS:.0f} s")
    report = session.folder.resolve() / "checks.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *CHECK_FILES]
    try:
        subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, timeout=session.left()
        )
    except subprocess.TimeoutExpired:
        raise Cut("the time was over; it starts again") from None
    if not report.exists():
        raise RuntimeError("pytest did not run")
    suite = ElementTree.parse(report).getroot()[0].attrib
    count = {k: int(suite[k]) for k in ("tests", "failures", "errors", "skipped")}
    if failed := count["failures"] + count["errors"]:
        raise RuntimeError(f"{failed} of {count['tests']} tests failed")
    if count["tests"] == count["skipped"]:
        raise Skipped("all tests were skipped")
    return {"passed": count["tests"] - count["skipped"], "skipped": count["skipped"]}


def report(measured: Results) -> str:
    """Markdown: how many runs of each group are measured, their results, and why others
    have none."""
    groups = {CHECKS_OF: [CHECKS]} | {k: [*map(str, v)] for k, v in GROUPS.items()}
    counts: list[Row] = []
    for group, runs in groups.items():
        done = sum(measured.get(run, {}).get("status") == "ok" for run in runs)
        counts.append({"runs": group, "measured": f"{done} of {len(runs)}"})
    present = {name: measured[name] for name in names() if name in measured}
    rows = [_row(name, x) for name, x in present.items() if "validation" in x]
    others = [_line(name, x) for name, x in present.items() if "validation" not in x]
    tables = [markdown_table(x) for x in (counts, rows) if x]
    return "\n\n".join([*tables, *others])


def _row(name: str, record: Record) -> Row:
    return {
        "run": name,
        "lr": f"{record['lr']:g}",
        "validation loss": short(record["validation"]) or "diverged",
        "accuracy": f"{100 * record['accuracy']:.1f} %",
        "ms a step": short(record["ms"]),
        "GPU": record["machine"]["device"],
    }


def _line(name: str, record: Record) -> str:
    keys = "status", "note", "validation", "passed"
    return ": ".join([name, *(str(record[key]) for key in keys if key in record)])
