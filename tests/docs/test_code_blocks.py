"""Every Python code block of README and docs runs; a page's blocks share names.

A block that needs a missing module ends its page.
"""

import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ngopt.graph.rules.registry import RULES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Modules that not every installation has.
OPTIONAL = "accelerate", "lightning", "networkx", "peft", "timm", "torch_geometric"
ONE_PROCESS = {"MASTER_ADDR": "localhost", "RANK": "0", "WORLD_SIZE": "1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def blocks_of(page):
    return BLOCK.findall(page.read_text())


def modules_of(code):
    return set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))


def missing_modules(code):
    needed = modules_of(code) & {*OPTIONAL}
    if "Trainer(" in code:
        needed |= {"accelerate", "transformers"}
    return sorted(name for name in needed if find_spec(name) is None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks_of(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    blocks = []
    for block in blocks_of(page):
        missing = missing_modules(block)
        if missing and not blocks:
            pytest.skip(f"needs {', '.join(missing)}")
        if missing:
            break
        blocks.append(block)
    code = "\n".join(blocks)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.print", lambda *values: None)
    for name, value in {**ONE_PROCESS, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    rules = dict(RULES)
    torch.manual_seed(0)
    try:
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    finally:
        RULES.clear()
        RULES.update(rules)


def test_links_of_readme_exist():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert targets and not missing
