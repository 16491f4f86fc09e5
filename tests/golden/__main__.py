"""Hashes of what must not change, to compare two checkouts on one machine to the bit.

    python -m tests.golden --json before.json      in one checkout
    python -m tests.golden --compare before.json   in the other one

Prints a line for each case: training runs of the default and of bundled metanets on
small networks, in one process and on two ranks, with a SHA-256 of all parameters after
the last step; graphs and roles; and operations of a step on the meta device. --compare
prints the cases that differ, with their first different step or the keys of the state
that differ, and ends with status 1 if there are any.

`--write-records` writes the records of `tests/golden/test_golden.py` anew. Do this only
if the rule is meant to change, in a commit of its own that says why.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.launches import quiet
from tests.golden import ranks, records, structures, trajectories
from tests.golden.trajectories import Snapshot, digest

Hashes = dict[str, Any]


def hashes(taken: list[Snapshot]) -> Hashes:
    """Of the parameters after each step, and of each key of the last state."""
    steps = [digest(snapshot.parameters) for snapshot in taken]
    states = [snapshot.state for snapshot in taken if snapshot.state]
    by_key: dict[str, dict[str, Tensor]] = {}
    for name, value in states[-1].items():
        by_key.setdefault(name.partition(".")[2], {})[name] = value
    return {
        "steps": [step[:12] for step in steps],
        "parameters": steps[-1],
        "state": {key: digest(values)[:12] for key, values in by_key.items()},
    }


def cases(pattern: str) -> Iterator[tuple[str, Hashes]]:
    """Name and hashes of every case whose name contains the pattern."""
    for dtype in ("float64", "float32"):
        for case in trajectories.cases(dtype):
            name = f"{case.name}, {case.dtype}"
            if pattern in name:
                yield name, hashes(trajectories.snapshots(case))
    if any(pattern in f"ranks, {case[0]}, {case[1]}" for case in ranks.CASES):
        for name, dtype, taken in ranks.snapshots():
            yield f"ranks, {name}, {dtype}", hashes(taken)
    for name, structure in structures.graphs():
        if pattern in f"graph, {name}":
            yield f"graph, {name}", structure
    for name, counts in structures.operations(pattern):
        yield name, counts


def difference(before: Hashes | None, after: Hashes | None) -> str:
    """What differs in a case; "" for nothing."""
    if before is None or after is None:
        return "is new" if before is None else "is missing"
    if "steps" in before:
        pairs = list(zip(before["steps"], after["steps"], strict=False))
        for step, (a, b) in enumerate(pairs, start=1):
            if a != b:
                return f"parameters differ from step {step} on"
    texts = []
    for key in before:
        old, new = before[key], after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and new is not None:
            changed = [
                f"{name} {old.get(name, 0)} -> {new.get(name, 0)}"
                for name in sorted({*old, *new})
                if old.get(name) != new.get(name)
            ]
            texts.append(f"{key}: {', '.join(changed)}")
        else:
            texts.append(key)
    return f"differs in {'; '.join(texts)}" if texts else ""


def line(name: str, record: Hashes) -> str:
    """A case in one line; of operations their total numbers."""
    if "parameters" in record:
        return f"{name}  {record['parameters']}"
    if "roles" in record:
        return f"{name}  {' '.join(record.values())}"
    totals = {key: sum(counts.values()) for key, counts in record.items()}
    return f"{name}  {totals}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="a file for the hashes")
    parser.add_argument("--compare", type=Path, help="such a file of another checkout")
    parser.add_argument("--only", default="", help="part of the names of cases to run")
    parser.add_argument("--write-records", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    by_case: dict[str, Hashes] = {}
    with quiet():
        if options.write_records:
            records.write()
            return
        for name, record in cases(options.only):
            by_case[name] = record
            print(line(name, record), flush=True)
    if options.json:
        options.json.write_text(json.dumps(by_case, indent=1) + "\n")
    if options.compare:
        before = json.loads(options.compare.read_text())
        sys.exit(compare(before, by_case, options.only))


def compare(before: dict[str, Hashes], after: dict[str, Hashes], pattern: str) -> int:
    """Prints differences; returns the exit status."""
    differing = 0
    for name in {**before, **after}:
        text = difference(before.get(name), after.get(name))
        if text and pattern in name:
            differing += 1
            print(f"DIFFERS  {name}: {text}")
    print(f"{differing} of {len(after)} cases differ")
    return int(differing > 0)


if __name__ == "__main__":
    main()
