"""Tables that scikit-learn comes with, whose columns have units of their own."""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor

from harness.image_datasets import DatasetUnavailable
from meta_train.problems.supervised import Listed, Splits


@cache
def real_table(name: str) -> Splits:
    """Columns (n, d) of "breast_cancer", "diabetes" or "wine", without any scaling.

    Half of the rows train, a quarter validates, a quarter tests. Targets: labels (n,);
    of "diabetes" numbers (n, 1) with mean 0 and variance 1.

    Raises DatasetUnavailable if scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        message = f"table '{name}': expected scikit-learn; {error}. Install it."
        raise DatasetUnavailable(message) from error
    options = {"scaled": False} if name == "diabetes" else {}
    found = getattr(datasets, f"load_{name}")(**options)
    columns = torch.tensor(found.data, dtype=torch.float32)
    targets = torch.tensor(found.target)
    if targets.is_floating_point():
        targets = ((targets - targets.mean()) / targets.std()).float()[:, None]
    return divided(columns, targets)


def divided(inputs: Tensor, targets: Tensor) -> Splits:
    """Half of the rows train, a quarter validates, a quarter tests; in a fixed order."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(26))
    quarter = len(order) // 4
    sizes = [len(order) - 2 * quarter, quarter, quarter]
    return Splits(*(Listed(inputs[rows], targets[rows]) for rows in order.split(sizes)))
