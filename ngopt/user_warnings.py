"""Warnings that name the line of the program that called ngopt."""

import sys
import warnings

import torch

INTERNAL = "ngopt", "torch", "contextlib"


def warn(text: str) -> None:
    """A UserWarning at the innermost line outside ngopt and torch."""
    warnings.warn(f"NGOptimizer: {text}", stacklevel=_level_of_user())


def _level_of_user() -> int:
    """The stacklevel, in the caller, of the first function outside `INTERNAL`."""
    if torch.compiler.is_dynamo_compiling():
        return 2
    level, frame = 0, sys._getframe()
    while frame.f_back is not None and _is_internal(
        frame.f_globals.get("__name__", "")
    ):
        level, frame = level + 1, frame.f_back
    return level


def _is_internal(module: str) -> bool:
    return module.partition(".")[0] in INTERNAL
