"""Tables of scikit-learn, whose columns have different units."""

from functools import cache
from itertools import starmap

import torch
from torch import Tensor

from meta_train.problems.supervised import Splits, tensor_examples


@cache
def real_table(name: str) -> Splits:
    """Unscaled columns (n, d) of "breast_cancer", "diabetes" or "wine".

    Targets are labels (n,). Those of "diabetes" are numbers (n, 1) with mean 0 and
    variance 1.
    """
    import sklearn.datasets as datasets

    options = {"scaled": False} if name == "diabetes" else {}
    table = getattr(datasets, f"load_{name}")(**options)
    columns = torch.tensor(table.data, dtype=torch.float32)
    targets = torch.tensor(table.target)
    if targets.is_floating_point():
        targets = (targets - targets.mean()) / targets.std()
        targets = targets.float()[:, None]
    return divided(columns, targets)


def divided(inputs: Tensor, targets: Tensor) -> Splits:
    """Half of the rows for training, a quarter each for validation and test.

    The rows are permuted; the permutation is fixed.
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(26))
    quarter = len(order) // 4
    sizes = [len(order) - 2 * quarter, quarter, quarter]
    pairs = zip(inputs[order].split(sizes), targets[order].split(sizes), strict=True)
    return Splits(*starmap(tensor_examples, pairs))
