"""Objects of the user by their import path."""

import sysconfig
import traceback
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

OF_CHECKOUT = "examples", "harness", "meta_train", "tasks"
"""Packages that are not installed with ngopt."""
INSTALLED = tuple(map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
"""Folders of Python and of installed packages."""


def load_object(path: str) -> Any:
    """The module "package.module", or the object "package.module:name" in it.

    Raises ValueError that names the wrong part of the path, and the line of a module
    that fails.
    """
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        message = f"cannot import '{module_name}': {error}{_line_of(error)}"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] in OF_CHECKOUT:
            message += f". '{missing}' is in the checkout of ngopt: run there."
        if module_name.endswith(".py"):
            stem = module_name.removesuffix(".py").replace("/", ".")
            message += f". Write the module without '.py': {stem}"
        raise ValueError(message) from error
    if not name:
        return module
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        raise ValueError(
            f"'{path}': expected '{name}' in module '{module_name}'; got none"
        ) from error


def call_object(path: str, *arguments: Any, given: str = "without arguments") -> Any:
    """What the function or class at "module:name" returns.

    Raises ValueError if it fails. given: the arguments, in words.
    """
    function = load_object(path)
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(
            f"'{path}' fails {given}: {type(error).__name__}: {error}"
        ) from error


def _line_of(error: Exception) -> str:
    """The last line of an import that is not in Python or an installed package; nothing
    if no line ran."""
    for frame in reversed(frames_outside(INSTALLED, error)):
        if frame.filename != __file__:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def frames_outside(
    folders: Iterable[str | Path], error: BaseException
) -> list[traceback.FrameSummary]:
    """The frames of a traceback in files outside of some folders."""
    frames = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        is_generated = frame.filename.startswith("<")
        if not is_generated and not any(map(path.is_relative_to, folders)):
            frames.append(frame)
    return frames
