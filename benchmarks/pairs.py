"""The command line of benchmarks of pairs, a network and the weights that step it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.records import Record, table, write


def main(
    about: str | None,
    records_of: Callable[[str, str], Iterable[Record]],
    networks: Sequence[str],
    weights: Sequence[str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Prints the records of all pairs, and writes them where asked.

    about: the program's description. networks, weights: what is taken unless others are
    named.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=raw)
    parser.add_argument(
        "--networks", nargs="*", default=networks, help="or widths of an MLP"
    )
    parser.add_argument("--weights", nargs="*", default=weights)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    records: list[Record] = []
    pairs = list(product(options.networks, options.weights))
    for pair in tqdm(pairs, unit="network"):
        records += records_of(*pair)
    write(options.output, records=records)
    print(table(records))
