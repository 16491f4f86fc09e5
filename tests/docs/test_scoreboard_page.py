"""The figures of the page and of the README are those of the records."""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
NAMES = {
    "default": "ngopt",
    "soap-default": "SOAP",
    "muon-default": "Muon",
    "adamw-default": "AdamW",
}

RIVALS = {
    "learned-step": "ngopt, [`learned-step`]",
    "default": "ngopt |",
    "amuse-default": "AMUSE",
    "celo2": "Celo2",
    "muon-adamw-rate": "`torch.optim.Muon`",
    "schedule-free-default": "schedule-free AdamW",
    "prodigy": "Prodigy",
    "ademamix-default": "AdEMAMix",
}


def read(path):
    return (ROOT / path).read_text()


@pytest.fixture(scope="module")
def percents():
    """Of problems that are solved, by optimizer."""
    solved = defaultdict(list)
    for attempt in json.loads(read("results/lightbench/first_attempt.json")):
        solved[attempt["optimizer"]].append(attempt["solved_at"] is not None)
    return {name: f"{100 * sum(x) / len(x):.0f} %" for name, x in solved.items()}


@pytest.mark.parametrize("optimizer", NAMES)
def test_the_page_has_the_recorded_shares_of_lightbench(percents, optimizer):
    page = read("docs/results/scoreboard.md")
    row = rf"^\| {NAMES[optimizer]}\b[^|]*\| \**{percents[optimizer]}\** \|"
    assert re.search(row, page, re.MULTILINE)


def test_the_readme_has_the_recorded_shares_of_lightbench(percents):
    readme = read("README.md")
    (row,) = re.findall(r"^\| \[LightBench\].*$", readme, re.MULTILINE)
    assert re.findall(r"\d+ %", row) == [percents[name] for name in NAMES]


@pytest.mark.parametrize("optimizer", RIVALS)
def test_the_page_has_the_recorded_ranks_of_velo(optimizer):
    record = re.escape(optimizer) + r" +\| (\S+) +\| (\d+ of \d+) +\| (\S+)"
    (cells,) = re.findall(rf"^\| {record}", read("results/velo/scoreboard.md"), re.M)
    page = read("docs/results/scoreboard.md")
    row, *_ = re.findall(rf"^\| {re.escape(RIVALS[optimizer])}.*$", page, re.M)
    assert [x.strip(" *") for x in row.split("|")[2:5]] == list(cells)


def test_page_and_readme_have_the_recorded_steps_to_the_envelope():
    scores = json.loads(read("results/velo/full.json"))
    whole = [x for x in scores if x["every"] * len(x["losses"]) == 10_000]
    reached = [x["reached"] for x in whole]
    page, readme = read("docs/results/scoreboard.md"), read("README.md")
    share = f"{median(reached) / 100:.0f} % of 10,000 steps"
    text = f"- {len(whole)} MLPs and autoencoders, one seed: reached on all, on the "
    assert None not in reached and f"{text}median task after {share}" in page
    (row,) = re.findall(r"^\| \[(\d+) of VeLO's tasks\].*\*\*(\S+)\*\*", readme, re.M)
    assert row == (str(len(whole)), f"{median(reached):,.0f}")


@pytest.fixture(scope="module", params=["meta-test", "situations-test"])
def untuned(request):
    """A list, and its results of optimizers without tuning."""
    return request.param, json.loads(
        read(f"results/untuned/{request.param}/results.json")
    )


@pytest.mark.parametrize("optimizer", RIVALS)
def test_the_page_has_the_recorded_ranks_of_a_list(untuned, optimizer):
    name, results = untuned
    recorded = "celo2-default" if optimizer == "celo2" else optimizer
    ranks = {row["optimizer"]: row["mean_rank"] for row in results["standings"][name]}
    _, after = read("docs/results/scoreboard.md").split("## Held-out problems")
    lines = after.partition("\n## ")[0].splitlines()
    (row,) = [x for x in lines if x.startswith(f"| {RIVALS[optimizer]}")]
    cell = row.strip("| ").split(" | ")[1 if name == "meta-test" else 2]
    assert cell.strip("*") == f"{ranks[recorded]:.1f}"


def test_the_page_has_the_problems_on_which_others_are_lower(untuned):
    _, results = untuned
    losses = defaultdict(dict)
    for row in results["table"]:
        losses[row["problem"]][row["optimizer"]] = row["test_loss"]
    lower = {}
    for problem, of_problem in losses.items():
        loss = of_problem.pop("default")
        of_problem.pop("learned-step")
        lowest = min(of_problem, key=of_problem.__getitem__)
        if of_problem[lowest] <= loss:
            lower[problem] = loss, of_problem[lowest]
    page = read("docs/results/scoreboard.md")
    count = f"{len(losses) - len(lower)} of {len(losses)}"
    assert f"on {count} problems" in page or f"on {count} runs" in page
    for problem, values in lower.items():
        pattern = rf"^\| `{problem}`[^|]*\| (\S+) \| (\S+) \|"
        ((ours, theirs),) = re.findall(pattern, page, re.M)
        assert list(values) == pytest.approx([float(ours), float(theirs)], rel=0.05)
