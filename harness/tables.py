"""Tables as text for terminals and as Markdown. A row maps column names to cells."""

from collections.abc import Iterator, Mapping, Sequence
from math import nan

import numpy as np

Row = Mapping[str, str]


def text_table(rows: Sequence[Row]) -> str:
    """A table in columns of equal width, with the first row's keys as header."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(_aligned(lines, "  "))


def markdown_table(rows: Sequence[Row]) -> str:
    r"""A Markdown table; `*` and `|` within cells are escaped."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        lines.append(
            [cell.replace("|", r"\|").replace("*", r"\*") for cell in row.values()]
        )
    return "\n".join(f"| {line} |" for line in _aligned(lines, " | "))


def sample_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; nan for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def plus_minus(mean: str, deviation: str, count: int) -> str:
    """A cell with a mean and, for several values, their deviation."""
    return mean if count == 1 else f"{mean} ± {deviation}"


def _aligned(lines: Sequence[Sequence[str]], separator: str) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield separator.join(map(str.ljust, line, widths))
