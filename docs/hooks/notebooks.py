"""Shows the scripts of `docs/notebooks` with their outputs.

A script is executed if its code changed since it was executed last. Outputs are kept in
`.cache/notebooks`; delete that folder to make them again. With NOTEBOOKS=skip nothing
is executed, and pages whose outputs are not in the cache show the code alone.
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "notebooks"
CACHE = ROOT / ".cache" / "notebooks"
TIMEOUT = 600  # seconds of one cell
PICTURES = {"image/png": "png", "image/svg+xml": "svg"}
# matplotlib's figures: sharp on phones and on screens
SETUP = """
%config InlineBackend.figure_format = "png"
%config InlineBackend.rc = {"figure.dpi": 150, "figure.constrained_layout.use": True}
"""


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs: adds a page, and its pictures, for every script."""
    for script in sorted(SCRIPTS.glob("*.py")):
        page, pictures = rendered(script.stem, executed(script))
        source = f"notebooks/{script.stem}"
        files.append(File.generated(config, f"{source}.md", content=page))
        for name, content in pictures.items():
            path = f"notebooks/{name}"
            files.append(File.generated(config, path, content=content))
    return files


def executed(script: Path) -> NotebookNode:
    """The notebook of a script with its outputs, from the cache if they are there."""
    notebook = jupytext.reads(script.read_text(), fmt="py:percent")
    code = "\0".join(cell.source for cell in code_cells(notebook))
    key = hashlib.sha256(code.encode()).hexdigest()[:16]
    kept = CACHE / f"{script.stem}-{key}.ipynb"
    if kept.exists():
        stored = code_cells(nbformat.read(kept, as_version=4))
        for cell, old in zip(code_cells(notebook), stored, strict=True):
            cell.outputs = old.outputs
    elif os.environ.get("NOTEBOOKS") != "skip":
        execute(notebook)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{script.stem}-*.ipynb"):
            old.unlink()
        nbformat.write(notebook, kept)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode) -> None:
    """Runs all cells in the repository's folder, and stores their outputs.

    Raises nbclient's CellExecutionError if a cell fails.
    """
    setup = nbformat.v4.new_code_cell(SETUP.strip())
    notebook.cells.insert(0, setup)
    place = {"metadata": {"path": str(ROOT)}}
    # the kernel imports the packages of the checkout
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    quiet = ["--IPKernelApp.log_level=40"]  # errors alone
    client = NotebookClient(
        notebook, timeout=TIMEOUT, resources=place, extra_arguments=quiet
    )
    client.execute(env=environment)
    notebook.cells.remove(setup)


def rendered(name: str, notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook in Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        parts.append(fenced(cell.source, "python"))
        for text in texts(cell):
            parts.append(fenced(text, "{ .text .output }"))
        for suffix, content in pictures_of(cell):
            file = f"{name}-{len(pictures)}.{suffix}"
            pictures[file] = content
            parts.append(f"[![Figure {len(pictures)}]({file})]({file})")
    title, *rest = parts
    head, _, introduction = title.partition("\n")
    source = f"[Download the script]({name}.py). It runs from a checkout."
    return "\n\n".join([head, introduction.strip(), source, *rest]), pictures


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def texts(cell: NotebookNode) -> Iterator[str]:
    """What a cell printed, and the text of its result if that is no picture."""
    printed = ""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            printed += output.text
    if printed.strip():
        yield printed
    for output in cell.outputs:
        data = output.get("data", {})
        if data.get("text/plain") and not PICTURES.keys() & data.keys():
            yield data["text/plain"]


def pictures_of(cell: NotebookNode) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of every picture among the outputs of a cell."""
    for output in cell.outputs:
        data = output.get("data", {})
        for kind, suffix in PICTURES.items():
            if kind in data:
                content = data[kind]
                binary = kind == "image/png"
                yield suffix, base64.b64decode(content) if binary else content.encode()
                break
