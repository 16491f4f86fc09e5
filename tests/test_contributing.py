import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_files_that_are_named_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    text += (ROOT / "docs" / "extending.md").read_text()
    folders = "ngopt|harness|tasks|meta_train|tests|docs"
    named = set(re.findall(rf"`((?:{folders})/[\w/.]*)`", text))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) > 20 and not missing
