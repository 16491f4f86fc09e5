"""Records of benchmarks: printed as a table, and written with their machine."""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.files import make_folder
from harness.tables import text_table

Record = dict[str, Any]


def table(records: Sequence[Record]) -> str:
    """One line for each record; the first record's keys are the header."""
    keys = list(records[0])
    return text_table([{key: _cell(record[key]) for key in keys} for record in records])


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of the command line with the option `--output`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    return parser


def write(path: Path | None, **tables: list[Record]) -> None:
    """Writes records and their machine as JSON; does nothing without a path."""
    if path is None:
        return
    make_folder(path.parent)
    path.write_text(json.dumps({"machine": machine(), **tables}, indent=1) + "\n")


def machine() -> Record:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def short(value: Any) -> Any:
    """A number with four digits; other values as they are."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else value
