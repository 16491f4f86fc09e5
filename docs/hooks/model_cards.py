"""Fills the page `model-cards.md` from the metadata of the bundled weights."""

from __future__ import annotations

import json
from typing import Any

from ngopt import list_pretrained, load_pretrained
from ngopt.pretrained import weights_hash

PLACE = "<!-- cards -->"
STAGE_KEYS = "problems", "estimator", "truncation", "optimizees", "lr", "outer_step"


def on_page_markdown(markdown: str, **event: Any) -> str:
    """Called by MkDocs with the text of every page."""
    if PLACE not in markdown:
        return markdown
    cards = "\n".join(card(name) for name in list_pretrained())
    return markdown.replace(PLACE, cards)


def card(name: str) -> str:
    """The card of one weights file in Markdown."""
    learned = load_pretrained(name)
    part: Any = learned.base if learned.metanet is None else learned.metanet
    parameters = 0
    if learned.metanet is not None:
        parameters = sum(p.numel() for p in learned.metanet.parameters())
    lines = [f"## `{name}`", "", "| | |", "|---|---|"]
    lines.append(f"| class | `{type(part).__name__}` |")
    lines.append(f"| parameters | {parameters:,} |")
    lines.append(f"| SHA-256 | `{weights_hash(learned)[:16]}` |")
    if learned.cooldown is not None:
        share = learned.cooldown.share
        lines.append(f"| cooldown with `total_steps` | last {share:.0%} of the steps |")
    for key, value in vars(part.config).items():
        lines.append(f"| `{key}` | {value} |")
    lines += ["", "Recipe:", ""]
    for stage in learned.recipe["stages"]:
        details = [f"{key} {stage[key]}" for key in STAGE_KEYS if stage.get(key)]
        lines.append(f"1. {stage.get('program')}: {', '.join(details)}")
    measured = json.dumps(learned.table, indent=1)
    lines += ["", '??? note "Measured"', "", "    ```json"]
    lines += [f"    {line}" for line in measured.splitlines()]
    lines += ["    ```", ""]
    return "\n".join(lines)
