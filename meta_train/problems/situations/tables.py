"""Matrix factorisation, rare tokens, and columns with different units."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.real_tables import real_table
from meta_train.problems.supervised import Batch, Splits


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
        self.row_bias = nn.Parameter(torch.zeros(rows)) if biases else None
        self.column_bias = nn.Parameter(torch.zeros(columns)) if biases else None

    def forward(self, places: Tensor) -> Tensor:
        """places: (b, 2) int64; returns (b,)"""
        i, j = places.unbind(1)
        entries = (self.rows(i) * self.columns(j)).sum(1)
        if self.row_bias is not None and self.column_bias is not None:
            entries = entries + self.row_bias[i] + self.column_bias[j]
        return entries


class Symmetric(nn.Module):
    """A symmetric factorised matrix: u_i . u_j."""

    def __init__(self, rows: int, rank: int):
        super().__init__()
        self.rows = nn.Embedding(rows, rank)

    def forward(self, places: Tensor) -> Tensor:
        """places: (b, 2) int64; returns (b,)"""
        u = self.rows(places)
        return (u[:, 0] * u[:, 1]).sum(1)


@cache
def entries(rows: int, columns: int, rank: int, noise: float, biased: bool) -> Splits:
    """Indices (b, 2) and entries (b,) of a matrix of low rank."""
    seed = 10 * rows
    u = fixed(rows, rank, seed=seed)
    v = fixed(columns, rank, seed=seed + 1)
    row_bias = biased * fixed(rows, seed=seed + 2)
    column_bias = biased * fixed(columns, seed=seed + 3)

    def draw(count: int) -> Batch:
        i = torch.randint(rows, (count,))
        j = torch.randint(columns, (count,))
        value = (u[i] * v[j]).sum(1) / rank**0.5
        return torch.stack([i, j], 1), value + row_bias[i] + column_bias[j]

    return generated(draw, noise)


@cache
def symmetric_entries(rows: int, rank: int, noise: float) -> Splits:
    """Indices (b, 2) and entries (b,) of a symmetric matrix of low rank."""
    u = fixed(rows, rank, seed=10 * rows)

    def draw(count: int) -> Batch:
        places = torch.randint(rows, (count, 2))
        return places, u[places].prod(1).sum(1) / rank**0.5

    return generated(draw, noise)


def zipf(count: int, vocabulary: int) -> Tensor:
    """Tokens (count,); the k-th has a probability of about 1 / k (Zipf's law)."""
    return (vocabulary ** torch.rand(count)).long().clamp(1, vocabulary) - 1


@cache
def labelled_tokens(vocabulary: int, classes: int, length: int) -> Splits:
    """Tokens (b, length) by Zipf's law, with the label of the rarest token, (b,)."""
    generator = torch.Generator().manual_seed(vocabulary)
    label_of = torch.randint(classes, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count * length, vocabulary).view(count, length)
        return tokens, label_of[tokens.amax(1)]

    return generated(draw)


@cache
def successors(vocabulary: int, seed: int) -> Splits:
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
        values = self.table(tokens)
        if tokens.dim() > 1:
            values = values.mean(1)
        return self.layers(values)


def _units(columns: int, decades: float) -> Tensor:
    """Units of columns, (columns,), from 10^(-decades / 2) to 10^(decades / 2)."""
    return 10 ** (decades * (torch.linspace(0, 1, columns) - 0.5))


@cache
def unscaled_regression(columns: int, decades: float, seed: int) -> Splits:
    """Columns (b, columns) with different units; targets (b, 1) of a small network."""
    unit = _units(columns, decades)
    first = fixed(columns, 16, seed=100 * seed)
    last = fixed(16, 1, seed=100 * seed + 1)
    shift = fixed(columns, seed=100 * seed + 2)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        hidden = (x @ first / columns**0.5).relu()
        return unit * (x + shift), hidden @ last / 4

    return generated(draw, 0.1)


@cache
def unscaled_classes(columns: int, decades: float, seed: int) -> Splits:
    """Columns with different units; labels (b,): the nearest of three centres."""
    unit = _units(columns, decades)
    centres = fixed(3, columns, seed=seed)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        return unit * x, torch.cdist(x, centres).argmin(1)

    return generated(draw)


MATRIX = partial(entries, 100, 80, 8, 0.05, False)
FACTORS = partial(Factors, 100, 80, 8, 0.1, False)
BIASED_MATRIX = partial(entries, 400, 300, 4, 0.1, True)
BIASED_FACTORS = partial(Factors, 400, 300, 6, 0.1, True)
SYMMETRIC_MATRIX = partial(symmetric_entries, 150, 6, 0.05)
SYMMETRIC_FACTORS = partial(Symmetric, 150, 8)

FACTORISATION = Kind(
    developing=[regress("factors-100", MATRIX, FACTORS, 256, 800)],
    validating=[regress("factors-biases-400", BIASED_MATRIX, BIASED_FACTORS, 512, 600)],
    testing=[
        regress("factors-symmetric-150", SYMMETRIC_MATRIX, SYMMETRIC_FACTORS, 256, 500)
    ],
)

LABELS_4096 = partial(labelled_tokens, 4096, 8, 8)
MLP_4096 = partial(TokenMlp, 4096, 32, 8, 1.0)
NEXT_2048 = partial(successors, 2048, 16)
MLP_2048 = partial(TokenMlp, 2048, 48, 2048, 0.02)
LABELS_20000 = partial(labelled_tokens, 20_000, 4, 6)
MLP_20000 = partial(TokenMlp, 20_000, 16, 4, 0.02)

RARE_TOKENS = Kind(
    developing=[classify("tokens-labels-4096", LABELS_4096, MLP_4096, 64, 600)],
    validating=[classify("tokens-next-2048", NEXT_2048, MLP_2048, 256, 300)],
    testing=[classify("tokens-labels-20000", LABELS_20000, MLP_20000, 128, 400)],
)

REGRESSION_20 = partial(unscaled_regression, 20, 3.0, 17)
REGRESSION_12 = partial(unscaled_regression, 12, 4.0, 21)
CLASSES_30 = partial(unscaled_classes, 30, 4.0, 20)
BREAST_CANCER = partial(real_table, "breast_cancer")
DIABETES = partial(real_table, "diabetes")
WINE = partial(real_table, "wine")

REGRESSION_20_MLP = partial(mlp, (20, 64, 1))
REGRESSION_12_MLP = partial(mlp, (12, 48, 48, 1), nn.SiLU)
CLASSES_MLP = partial(mlp, (30, 64, 64, 3))
CANCER_MLP = partial(mlp, (30, 48, 2))
DIABETES_MLP = partial(mlp, (10, 32, 32, 1), nn.Tanh)
WINE_MLP = partial(mlp, (13, 32, 3), nn.SiLU)

UNSCALED_COLUMNS = Kind(
    developing=[
        regress("columns-regression-20", REGRESSION_20, REGRESSION_20_MLP, 64, 500),
        classify("columns-breast-cancer-300", BREAST_CANCER, CANCER_MLP, 32, 300),
    ],
    validating=[
        classify("columns-classes-30", CLASSES_30, CLASSES_MLP, 64, 400),
        regress("columns-diabetes-400", DIABETES, DIABETES_MLP, 32, 400),
    ],
    testing=[
        regress("columns-regression-12", REGRESSION_12, REGRESSION_12_MLP, 32, 600),
        classify("columns-wine-200", WINE, WINE_MLP, 16, 200),
    ],
)

KINDS = {
    "factorisation": FACTORISATION,
    "rare tokens": RARE_TOKENS,
    "unscaled columns": UNSCALED_COLUMNS,
}
