import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_files_that_are_named_exist():
    pages = *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")
    text = "".join(page.read_text() for page in pages)
    folders = "ngopt|harness|tasks|meta_train|benchmarks|examples|tests|docs|results"
    named = set(re.findall(rf"`((?:{folders})/[\w/.]*)`", text))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert named and not missing
