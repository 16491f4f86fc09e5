"""The documentation shows docstrings with lists, equations and shapes."""

import importlib.util
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "docstrings.py"


@pytest.fixture
def as_markdown():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docs_hooks_docstrings", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.as_markdown


def test_entries_of_known_names_are_a_list(as_markdown):
    text = "A layer.\n\nwidth: of states. a, b: both\nends. note: of none."
    found = as_markdown(text, {"width", "a", "b"})
    assert (
        found
        == "A layer.\n\n- `width`: of states.\n- `a`, `b`: both ends. note: of none."
    )


def test_equations_are_code(as_markdown):
    text = "nodes    v + u\nedges    e + u\n         + w"
    assert as_markdown(text, set()) == "\n".join(f"    {x}" for x in text.split("\n"))


def test_asterisks_of_shapes_are_no_emphasis(as_markdown):
    assert as_markdown("(*batch, n) and `(*batch, m)`", set()) == (
        r"(\*batch, n) and `(*batch, m)`"
    )


def test_examples_have_no_prompts(as_markdown):
    text = "Example:\n    >>> with a:\n    ...     b()"
    assert as_markdown(text, set()) == (
        "**Example**\n\n```python\nwith a:\n    b()\n```"
    )


def test_sections_stay(as_markdown):
    text = "Args:\n    x: (*batch, n).\n\nRaises ValueError if x is empty."
    assert as_markdown(text, {"x"}) == text.replace("(*", r"(\*")
