"""Metadata of bundled weights, README and docs against programs and records.

Recipes name programs and options of today. Accuracies are those of `results/`.
"""

import json
import re
from dataclasses import MISSING, asdict, fields
from functools import cache
from importlib import import_module
from inspect import getsource
from pathlib import Path
from statistics import mean, stdev

import pytest
import tyro

from ngopt import list_pretrained, load_pretrained
from ngopt.pretrained.weights_file import recipe_and_table, weights_hash

ROOT = Path(__file__).parents[2]
# What a stage records besides the options of its program.
RESULTS = {
    "chosen", "mantissa_bits", "outer_step", "program", "rounded_from", "trainings",
    "trainings_of_slopes",
}  # fmt: skip
METANETS = "ff", "lstm", "nfn", "ng-gnn", "ng-t"
PROBLEMS = "fm-16", "c10-32"
# Rows of docs/results/paper.md and columns of README.
BASELINES = {
    "Adam": "adam",
    "Adam, cosine": "adam-cosine",
    "schedule-free AdamW": "schedule-free",
    "Muon, cosine": "muon-cosine",
    "SOAP, cosine": "soap-cosine",
}
README_COLUMNS = "default", "soap-cosine", "muon-cosine", "adam-cosine"
README_ROWS = {"fm-16": "CNN on FashionMNIST", "c10-32": "CNN on CIFAR-10"}


def stages():
    for name in list_pretrained():
        recipe, _ = recipe_and_table(load_pretrained(name))
        for number, stage in enumerate(recipe["stages"]):
            yield pytest.param(stage, id=f"{name} {number}")


def arguments(options):
    """The options of a program as a command line."""
    words = []
    for key, value in options.items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        if isinstance(value, dict):
            value = [word for item in value.items() for word in item]
        words.append(f"--{option}")
        words += map(str, value if isinstance(value, list) else [value])
    return words


@pytest.mark.parametrize("stage", list(stages()))
def test_recipes_are_commands(stage):
    config = import_module(stage["program"]).Config
    options = {key: stage[key] for key in stage.keys() - RESULTS}
    required = {}
    for field in fields(config):
        if field.default is MISSING and field.default_factory is MISSING:
            required[field.name] = "path"
    parsed = asdict(tyro.cli(config, args=arguments(required | options)))
    for key, value in options.items():
        assert parsed[key] == (tuple(value) if isinstance(value, list) else value)


@cache
def accuracies(folder, problem):
    """Test accuracies of the evaluation, in %, by optimizer and hash of its weights."""
    by_optimizer = {}
    path = ROOT / folder / "records" / f"{problem}.jsonl"
    for line in path.read_text().splitlines():
        record = json.loads(line)
        run = record["run"]
        if run["phase"] == "evaluation":
            key = run["optimizer"], run["weights"]
            accuracy = 100 * record["test"]["accuracy"]
            by_optimizer.setdefault(key, {})[run["seed"]] = accuracy
    return by_optimizer


def recorded(optimizer, problem):
    """Mean and standard deviation over five seeds, of the weights that are bundled."""
    folder = "results/default" if optimizer == "default" else "results/paper_tasks"
    hashes = {None}
    name = optimizer.removesuffix(":open")
    if name in list_pretrained():
        rule = load_pretrained(name)
        recipe, _ = recipe_and_table(rule)
        hashes = {stage.get("rounded_from") for stage in recipe["stages"]}
        hashes.add(weights_hash(rule))
    (by_seed,) = (
        values
        for (other, weights), values in accuracies(folder, problem).items()
        if other == optimizer and weights in hashes
    )
    assert by_seed.keys() == set(range(5))
    return mean(by_seed.values()), stdev(by_seed.values())


@pytest.mark.parametrize("name", METANETS)
def test_tables_are_records(name):
    table = load_pretrained(name).table
    command, module = table["command"].rsplit(" ", 1)
    assert command == "python -m"
    assert "cli.main(" in getsource(import_module(module))
    assert table["records"] == "results/paper_tasks"
    for problem in PROBLEMS:
        for suffix in ("", ":open"):
            entry = table[problem + suffix]
            expected = pytest.approx(recorded(name + suffix, problem), abs=1e-6)
            measured = entry["test_accuracy_mean"], entry["test_accuracy_std"]
            assert measured == expected
            assert (entry["seeds"], entry["steps"]) == (5, 1000)


def printed_pairs(cells):
    """Mean and standard deviation in cells such as "**90.11 ± .22 %**"."""
    pairs = []
    for cell in cells:
        match = re.search(r"(\d+\.\d+) ± (\d*\.\d+)", cell)
        pairs.append(match and tuple(map(float, match.groups())))
    return pairs


def rounded(optimizer, problem):
    average, deviation = recorded(optimizer, problem)
    return pytest.approx((average, deviation), abs=0.0051)


def rows_of(page):
    """Cells of all table rows of a page, by the text of the first cell."""
    rows = {}
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("| "):
            label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(label.strip("*`"), []).append(cells)
    return rows


def test_readme_has_the_recorded_accuracies():
    rows = rows_of("README.md")
    for problem, label in README_ROWS.items():
        ((cells,),) = (value for key, value in rows.items() if key.startswith(label))
        expected = [rounded(optimizer, problem) for optimizer in README_COLUMNS]
        assert printed_pairs(cells) == expected


def test_the_page_of_the_paper_has_the_recorded_accuracies():
    rows = rows_of("docs/results/paper.md")
    optimizers = BASELINES | {name: name for name in ("default", *METANETS)}
    for label, optimizer in optimizers.items():
        first, *others = rows[label]
        pairs = printed_pairs(first)
        assert pairs[0] == rounded(optimizer, "fm-16")
        assert pairs[2] == rounded(optimizer, "c10-32")
        if optimizer in METANETS:  # the table without `total_steps`
            pairs = printed_pairs(others[0])
            assert pairs[0] == rounded(f"{optimizer}:open", "fm-16")
            assert pairs[2] == rounded(f"{optimizer}:open", "c10-32")
