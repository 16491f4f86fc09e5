"""Puts generated text in place of the marks of two pages: the README, up to its list of
documentation, into the home page, and the metadata of the bundled weights into
`model-cards.md`."""

import json
from pathlib import Path
from typing import Any

from ngopt import list_pretrained, load_pretrained
from ngopt.cli import describe

README = Path(__file__).parents[2] / "README.md"
HOME, CARDS = "<!-- home -->", "<!-- cards -->"
STAGE_KEYS = (
    "problems", "estimator", "truncation", "optimizees", "lr", "outer_step",
    "mantissa_bits", "trainings", "trainings_of_slopes",
)  # fmt: skip


def on_page_markdown(markdown: str, **event: Any) -> str:
    """Called by MkDocs with the text of every page."""
    if HOME in markdown:
        _, after = README.read_text().split("<!-- [start:home] -->\n")
        home, _ = after.split("<!-- [end:home] -->")
        return markdown.replace(HOME, home.replace("](docs/", "]("))
    if CARDS in markdown:
        cards = "\n".join(card(name) for name in list_pretrained())
        return markdown.replace(CARDS, cards)
    return markdown


def card(name: str) -> str:
    """The card of one weights file in Markdown."""
    found = describe(name)
    lines = [f"## `{name}`", "", "| | |", "|---|---|"]
    lines.append(f"| class | `{found['class']}` |")
    lines.append(f"| parameters | {found['parameters']:,} |")
    lines.append(f"| SHA-256 | `{found['sha256'][:16]}` |")
    cooldown = getattr(load_pretrained(name), "cooldown", None)
    if cooldown is not None:
        share = f"last {cooldown.share:.0%} of the steps"
        lines.append(f"| cooldown with `total_steps` | {share} |")
    for key, value in found["config"].items():
        lines.append(f"| `{key}` | {value} |")
    for stage in found["recipe"]["stages"]:
        if bits := stage.get("mantissa_bits"):
            lines += ["", f"The weights are rounded to {bits} bits of mantissa."]
    if found["recipe"]["stages"]:
        lines += ["", "Recipe:", ""]
    for stage in found["recipe"]["stages"]:
        details = [f"{key} {stage[key]}" for key in STAGE_KEYS if stage.get(key)]
        lines.append(f"1. {stage.get('program')}: {', '.join(details)}")
    lines.append("")
    if found["table"]:
        measured = json.dumps(found["table"], indent=1)
        lines += ['??? note "Measured"', "", "    ```json"]
        lines += [f"    {line}" for line in measured.splitlines()]
        lines += ["    ```", ""]
    return "\n".join(lines)
