"""Tables as text, for terminals and Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def align(
    header: Sequence[str], body: Sequence[Sequence[str]], separator: str = "  "
) -> list[str]:
    """Lines of a table in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = []
    for line in [header, *body]:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        lines.append(separator.join(padded))
    return lines


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a `*` or `|` within a cell is escaped."""
    escaped = [
        [cell.replace("|", r"\|").replace("*", r"\*") for cell in line] for line in body
    ]
    first, *rest = align(header, [["---"] * len(header), *escaped], " | ")
    return [f"| {line} |" for line in (first, *rest)]
