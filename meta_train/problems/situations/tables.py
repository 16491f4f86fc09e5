"""Matrix factorisation, rare tokens, and columns with different units.

Real tables are those of scikit-learn.
"""

from functools import cache
from itertools import starmap

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.supervised import Batch, Data, Splits, tensor_examples


class Factors(nn.Module):
    """A factorised matrix: u_i . v_j, plus biases of rows and columns if `biases`.

    std: standard deviation of the initial factors.
    """

    def __init__(self, rows: int, columns: int, rank: int, std: float, biases: bool):
        super().__init__()
        self.rows = nn.Embedding(rows, rank)
        self.columns = nn.Embedding(columns, rank)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=std)
        self.row_bias = self.column_bias = None
        if biases:
            self.row_bias = nn.Parameter(torch.zeros(rows))
            self.column_bias = nn.Parameter(torch.zeros(columns))

    def forward(self, indices: Tensor) -> Tensor:
        """indices: (b, 2) int64; returns (b,)"""
        i, j = indices.unbind(1)
        entries = (self.rows(i) * self.columns(j)).sum(1)
        if self.row_bias is not None and self.column_bias is not None:
            entries = entries + self.row_bias[i] + self.column_bias[j]
        return entries


class Symmetric(nn.Module):
    """A symmetric factorised matrix: u_i . u_j."""

    def __init__(self, rows: int, rank: int):
        super().__init__()
        self.rows = nn.Embedding(rows, rank)

    def forward(self, indices: Tensor) -> Tensor:
        """indices: (b, 2) int64; returns (b,)"""
        u = self.rows(indices)
        return (u[:, 0] * u[:, 1]).sum(1)


def entries(rows: int, columns: int, rank: int, noise: float, biased: bool) -> Data:
    """Indices (b, 2) and entries (b,) of a matrix of low rank."""
    seed = 10 * rows
    u = fixed(rows, rank, seed=seed)
    v = fixed(columns, rank, seed=seed + 1)
    row_bias = biased * fixed(rows, seed=seed + 2)
    column_bias = biased * fixed(columns, seed=seed + 3)

    def draw(count: int) -> Batch:
        i = torch.randint(rows, (count,))
        j = torch.randint(columns, (count,))
        entries = (u[i] * v[j]).sum(1) / rank**0.5
        return torch.stack([i, j], 1), entries + row_bias[i] + column_bias[j]

    return generated(draw, noise)


def symmetric_entries(rows: int, rank: int, noise: float) -> Data:
    """Indices (b, 2) and entries (b,) of a symmetric matrix of low rank."""
    u = fixed(rows, rank, seed=10 * rows)

    def draw(count: int) -> Batch:
        indices = torch.randint(rows, (count, 2))
        return indices, u[indices].prod(1).sum(1) / rank**0.5

    return generated(draw, noise)


def zipf(count: int, vocabulary: int) -> Tensor:
    """Tokens (count,); the k-th has a probability of about 1 / k (Zipf's law)."""
    tokens = (vocabulary ** torch.rand(count)).long()
    return tokens.clamp(1, vocabulary) - 1


def labelled_tokens(vocabulary: int, classes: int, length: int) -> Data:
    """Tokens (b, length) by Zipf's law, with the label of the rarest token, (b,)."""
    generator = torch.Generator().manual_seed(vocabulary)
    label_of = torch.randint(classes, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count * length, vocabulary).view(count, length)
        return tokens, label_of[tokens.amax(1)]  # the rarest

    return generated(draw)


def successors(vocabulary: int, seed: int) -> Data:
    """A token (b,) by Zipf's law and the next: a fixed one with probability .8."""
    generator = torch.Generator().manual_seed(seed)
    successor_of = torch.randint(vocabulary, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count, vocabulary)
        other = zipf(count, vocabulary)
        is_fixed = torch.rand(count) < 0.8
        return tokens, torch.where(is_fixed, successor_of[tokens], other)

    return generated(draw)


class TokenMlp(nn.Module):
    """The mean of token embeddings, then an MLP.

    std: standard deviation of the initial embeddings.
    """

    def __init__(self, vocabulary: int, width: int, fan_out: int, std: float):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=std)
        self.layers = mlp((width, 2 * width, fan_out))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (b,) or (b, t) int64; returns (b, fan_out)"""
        embeddings = self.table(tokens)
        if tokens.dim() > 1:
            embeddings = embeddings.mean(1)
        return self.layers(embeddings)


def _units(columns: int, decades: float) -> Tensor:
    """Units of columns, (columns,), from 10^(-decades / 2) to 10^(decades / 2)."""
    return 10 ** (decades * (torch.linspace(0, 1, columns) - 0.5))


def unscaled_regression(columns: int, decades: float, seed: int) -> Data:
    """Columns (b, columns) with different units; targets (b, 1) of a small network."""
    unit = _units(columns, decades)
    first = fixed(columns, 16, seed=100 * seed)
    last = fixed(16, 1, seed=100 * seed + 1)
    shift = fixed(columns, seed=100 * seed + 2)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        return unit * (x + shift), (x @ first / columns**0.5).relu() @ last / 4

    return generated(draw, 0.1)


def unscaled_classes(columns: int, decades: float, seed: int) -> Data:
    """Columns with different units; labels (b,): the nearest of three centres."""
    unit = _units(columns, decades)
    centres = fixed(3, columns, seed=seed)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        return unit * x, torch.cdist(x, centres).argmin(1)

    return generated(draw)


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


# of each kind in turn for development, validation and test
PROBLEMS = {
    "factors-100": regress(
        entries(100, 80, 8, 0.05, False), 256, 800, Factors, 100, 80, 8, 0.1, False
    ),
    "factors-biases-400": regress(
        entries(400, 300, 4, 0.1, True), 512, 600, Factors, 400, 300, 6, 0.1, True
    ),
    "factors-symmetric-150": regress(
        symmetric_entries(150, 6, 0.05), 256, 500, Symmetric, 150, 8
    ),
    "tokens-labels-4096": classify(
        labelled_tokens(4096, 8, 8), 64, 600, TokenMlp, 4096, 32, 8, 1.0
    ),
    "tokens-next-2048": classify(
        successors(2048, 16), 256, 300, TokenMlp, 2048, 48, 2048, 0.02
    ),
    "tokens-labels-20000": classify(
        labelled_tokens(20000, 4, 6), 128, 400, TokenMlp, 20000, 16, 4, 0.02
    ),
    "columns-regression-20": regress(
        unscaled_regression(20, 3.0, 17), 64, 500, mlp, (20, 64, 1)
    ),
    "columns-classes-30": classify(
        unscaled_classes(30, 4.0, 20), 64, 400, mlp, (30, 64, 64, 3)
    ),
    "columns-regression-12": regress(
        unscaled_regression(12, 4.0, 21), 32, 600, mlp, (12, 48, 48, 1), nn.SiLU
    ),
    "columns-breast-cancer-300": classify(
        lambda: real_table("breast_cancer"), 32, 300, mlp, (30, 48, 2)
    ),
    "columns-diabetes-400": regress(
        lambda: real_table("diabetes"), 32, 400, mlp, (10, 32, 32, 1), nn.Tanh
    ),
    "columns-wine-200": classify(
        lambda: real_table("wine"), 16, 200, mlp, (13, 32, 3), nn.SiLU
    ),
}
