"""The tables of docs/results/matrices.md have the figures of their records."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = "graph", "ndim >= 2", "DeepSpeed", "torchtitan"


def test_percentages_are_those_of_the_records():
    path = ROOT / "results/labelled_matrices.json"
    records = json.loads(path.read_text())["networks"]
    keys = "elements", *RULES
    total = {key: sum(record[key] for record in records) for key in keys}
    lines = (ROOT / "docs/results/matrices.md").read_text().splitlines()
    for record in ({"network": "all", **total}, *records):
        elements = record["elements"]
        shares = (f"{100 * record[rule] / elements:.1f}" for rule in RULES)
        cells = record["network"], f"{elements:,}", *shares
        assert f"| {' | '.join(cells)} |" in lines


def test_losses_are_those_of_the_records():
    records = json.loads((ROOT / "results/fused_gpt.json").read_text())["variants"]
    page = (ROOT / "docs/results/matrices.md").read_text()
    for record in records:
        loss, deviation = record["loss"], record["deviation"]
        assert f"| {record['Muon on']} | {loss:.3f} ± {deviation:.3f} |" in page
