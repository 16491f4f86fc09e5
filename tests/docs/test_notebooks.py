"""Every notebook of the documentation runs, at small settings."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.selection import quick_first

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
SMALL = {
    "train": "steps, batch_size = 12, 32",
    "graph": "",
    "meta_training": "outer_steps, horizon = 2, 60",
    "classify_inrs": """
networks = {"train": 48, "validation": 16, "test": 16}
fit_steps, train_steps = 4, 4
""",
}
"""Code behind the cell of parameters, by name of the script."""


def load_hook():
    path = ROOT / "docs" / "hooks" / "notebooks.py"
    spec = importlib.util.spec_from_file_location("docs_hooks_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_notebooks_run_and_pages_have_their_outputs(script):
    for name in ("jupytext", "nbclient", "ipykernel", "mkdocs", "matplotlib"):
        pytest.importorskip(name)
    import jupytext
    from nbformat.v4 import new_code_cell

    hook = load_hook()
    notebook = jupytext.reads(script.read_text(), fmt="py:percent")
    numbers = []
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            numbers.append(number)
    small = SMALL[script.stem]
    assert len(numbers) == bool(small)
    for number in numbers:
        notebook.cells.insert(number + 1, new_code_cell(small.strip()))
    hook.execute(notebook)
    page, pictures = hook.rendered(script.stem, notebook)
    assert page.startswith("# ")
    assert pictures and all(f"]({name})" in page for name in pictures)
    assert "Traceback" not in page


@pytest.mark.parametrize(
    "script", quick_first(SCRIPTS, SCRIPTS[:1]), ids=lambda script: script.stem
)
def test_notebooks_import_the_checkout_from_their_folder(script, tmp_path):
    """As in Jupyter, whose kernel starts in the folder of the notebook."""
    folder = tmp_path / "docs" / "notebooks"
    shutil.copytree(ROOT / "docs" / "notebooks", folder)
    for name in ("ngopt", "harness", "meta_train", "tasks", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    cells = re.split(r"^# %%.*\n", script.read_text(), flags=re.MULTILINE)
    first = [cell for cell in cells if "os.chdir" in cell]
    pattern = r"^(?:from|import) (?:harness|meta_train|ngopt|tasks)\b.*$"
    imports = re.findall(pattern, script.read_text(), re.MULTILINE)
    needs_checkout = any(
        "import ngopt" not in x and "from ngopt" not in x for x in imports
    )
    assert imports and len(first) == needs_checkout
    code = "\n".join([*first, *imports, "import os; print(os.getcwd())"])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    expected = tmp_path if first else folder
    assert process.stdout.strip() == str(expected), process.stderr


def test_every_notebook_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    index = (ROOT / "docs" / "notebooks" / "index.md").read_text()
    assert SCRIPTS and {script.stem for script in SCRIPTS} == set(SMALL)
    for script in SCRIPTS:
        assert f"notebooks/{script.stem}.md" in navigation
        assert f"]({script.stem}.md)" in index
