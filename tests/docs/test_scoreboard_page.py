"""The shares of the page and of the README are those of the record."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = {
    "default": "ngopt",
    "soap-default": "SOAP",
    "muon-default": "Muon",
    "adamw-default": "AdamW",
}


@pytest.fixture(scope="module")
def percents():
    """Of problems that are solved, by optimizer."""
    solved = defaultdict(list)
    for attempt in json.loads(
        (ROOT / "results/lightbench/first_attempt.json").read_text()
    ):
        solved[attempt["optimizer"]].append(attempt["solved_at"] is not None)
    return {name: f"{100 * sum(x) / len(x):.0f} %" for name, x in solved.items()}


@pytest.mark.parametrize("optimizer", NAMES)
def test_the_page_has_the_recorded_shares_of_lightbench(percents, optimizer):
    page = (ROOT / "docs/results/scoreboard.md").read_text()
    row = rf"^\| {NAMES[optimizer]}\b[^|]*\| \**{percents[optimizer]}\** \|"
    assert re.search(row, page, re.MULTILINE)


def test_the_readme_has_the_recorded_shares_of_lightbench(percents):
    readme = (ROOT / "README.md").read_text()
    (row,) = re.findall(r"^\| \[LightBench\].*$", readme, re.MULTILINE)
    assert re.findall(r"\d+ %", row) == [percents[name] for name in NAMES]
