"""Trains with optimizers, and keeps a record of each run, so that none is repeated."""

import multiprocessing
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from harness.files import append_line, make_folder, read_lines
from meta_train.comparison.inner_training import (
    Record,
    Run,
    problem_digest,
    time_in_turns,
    train,
)
from meta_train.comparison.optimizers import import_metanet
from meta_train.problems import load_problem
from ngopt.metanets.imported import imported_metanets


def execute(
    runs: Sequence[Run], folder: Path, processes: int, bar: tqdm
) -> list[Record]:
    """The records of all runs, in their order. Stored ones are read, others are made.

    folder: has one file per problem, with one record a line. Records of your own
        problem are made again when the problem has changed.
    processes: with more than one, runs are spread over spawned processes of one thread
        each.
    """
    make_folder(folder)
    records = read_records(folder, runs)
    pending = []
    for run in runs:
        digest = records[run].get("problem_digest") if run in records else None
        if run not in records or digest != problem_digest(run.problem):
            pending.append(run)
    bar.update(len(runs) - len(pending))
    if processes > 1 and pending:
        _execute_in_processes(pending, folder, processes, bar)
    else:
        for run in pending:
            bar.set_description(str(run))
            _train_and_append(run, folder)
            bar.update()
    if pending:
        records = read_records(folder, runs)
    return [records[run] for run in runs]


def read_records(folder: Path, runs: Iterable[Run]) -> dict[Run, Record]:
    """All stored records of the problems of these runs, by run."""
    paths = dict.fromkeys(record_path(folder, run) for run in runs)
    records = {}
    for record in read_lines(paths):
        run = Run(**record["run"])
        records[run] = {**record, "run": asdict(run)}  # older ones have fewer fields
    return records


def record_path(folder: Path, run: Run) -> Path:
    """The file that holds the records of a run's problem."""
    return folder / f"{file_name(run.problem)}.jsonl"


def file_name(name: str) -> str:
    """A name as a file name: other characters replaced, the last 40 characters."""
    return re.sub(r"[^\w.-]+", "_", name)[-40:]


def _train_and_append(run: Run, folder: Path) -> None:
    measure = time_in_turns if run.phase == "timing" else train
    append_line(record_path(folder, run), measure(run))


def _begin_process(metanets: Sequence[str]) -> None:
    """metanets: of the user's own, which weights may name."""
    torch.set_num_threads(1)
    for name in metanets:
        import_metanet(name)


def _execute_in_processes(
    pending: Sequence[Run], folder: Path, processes: int, bar: tqdm
) -> None:
    for name in dict.fromkeys(run.problem for run in pending):
        # missing data is fetched once, not by every process
        load_problem(name).batch(0, 0)
    pool = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(imported_metanets(),),
    )
    bar.set_description(", ".join(map(str, pending[:processes])))
    try:
        futures = {pool.submit(_train_and_append, run, folder): run for run in pending}
        for future in as_completed(futures):
            future.result()
            bar.update()
            # `running` is also true of the next in line, hence the cut.
            running = [str(run) for f, run in futures.items() if f.running()]
            bar.set_description(", ".join(running[:processes]))
    finally:
        pool.shutdown(cancel_futures=True)
