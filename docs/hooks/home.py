"""Puts the README, up to its list of documentation, into the home page."""

from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"
PLACE = "<!-- home -->"


def on_page_markdown(markdown: str, **event: Any) -> str:
    """Called by MkDocs with the text of every page."""
    if PLACE not in markdown:
        return markdown
    _, after = README.read_text().split("<!-- [start:home] -->\n")
    home, _ = after.split("<!-- [end:home] -->")
    return markdown.replace(PLACE, home.replace("](docs/", "]("))
