"""Warnings that name the line of the program that called ngopt."""

import sys
import warnings

import torch

INTERNAL = "ngopt", "torch", "contextlib"


def warn(text: str) -> None:
    """A UserWarning at the innermost line outside ngopt and torch."""
    level, frame = 1, None if torch.compiler.is_dynamo_compiling() else sys._getframe()
    while frame is not None and frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in INTERNAL:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(f"NGOptimizer: {text}", stacklevel=level)
