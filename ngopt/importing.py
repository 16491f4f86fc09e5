"""Objects of the user by their import path."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any

OF_CHECKOUT = "examples", "harness", "meta_train", "tasks"
"""Packages that are not installed with ngopt."""


def load_object(path: str) -> Any:
    """The module "package.module", or the object "package.module:name" in it.

    Raises ValueError that names the wrong part of the path.
    """
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        message = f"cannot import '{module_name}': {error}"
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        if name and name.partition(".")[0] in OF_CHECKOUT:
            message += f". '{name}' is in the checkout of ngopt: run there."
        raise ValueError(message) from error
    if not name:
        return module
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        raise ValueError(f"module '{module_name}' has no '{name}'") from error
