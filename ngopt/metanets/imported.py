"""Metanets by name: registered ones, and your own as "module:Class"."""

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ngopt.importing import load_object
from ngopt.metanets.metanet import Metanet

T = TypeVar("T")

_imported: list[str] = []


def imported_metanets() -> tuple[str, ...]:
    """Names that `find_metanet` was allowed to import. New processes import them
    again."""
    return tuple(_imported)


def metanet_name(metanet: Metanet, known: Mapping[str, type[Metanet]]) -> str:
    """The name in a weights file: the registered one, or "module:Class"."""
    cls = type(metanet)
    if known.get(getattr(cls, "name", "")) is cls:
        return cls.name
    return f"{cls.__module__}:{cls.__qualname__}"


def find_metanet(
    name: str, known: Mapping[str, type[Metanet]], may_import: bool = False
) -> type[Metanet]:
    """The class of a registered name, or of "module:Class".

    may_import: whether the name comes from the user. Importing a module runs its code,
    so a name from a file is only found in modules that are imported already.

    Raises ValueError, which names the module or the attribute, if there is no such
    class.
    """
    if name in known:
        return known[name]
    cls = find_class("metanet", name, list(known), Metanet, may_import)
    if may_import and name not in _imported:
        _imported.append(name)
    return cls


def find_class(
    what: str, name: str, known: Sequence[str], base: type[T], may_import: bool
) -> type[T]:
    """The subclass of `base` that "module:Class" names.

    what, known: the kind of class and registered names, for messages. may_import: as in
    `find_metanet`.

    Raises ValueError, which names the module or the attribute, if there is no such
    class.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise ValueError(
            f"{what} '{name}': expected one of {', '.join(known)}, or module:Class"
        )
    if module_name not in sys.modules and not may_import:
        raise ValueError(
            f"{what} '{name}': expected module '{module_name}' to be imported; got a "
            "file that names it. If you trust it, import it first; on the command line "
            f"pass --{what} {name}."
        )
    cls = load_object(name)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        expected = f"a subclass of {base.__module__}.{base.__name__}"
        raise ValueError(f"{what} '{name}': expected {expected}; got {cls!r}")
    return cls
