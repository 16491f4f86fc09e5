"""Tables: factors of matrices, rare tokens, columns in units of their own."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, fit
from meta_train.problems.situations.real_tables import real_table
from meta_train.problems.supervised import Batch, Splits


class Factors(nn.Module):
    """A matrix as the product of two tables: u_i . v_j, with biases where asked for.

    std: of the tables' normal numbers at the start.
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
        found = (self.rows(i) * self.columns(j)).sum(1)
        if self.row_bias is not None and self.column_bias is not None:
            found = found + self.row_bias[i] + self.column_bias[j]
        return found


class Symmetric(nn.Module):
    """A matrix as the product of one table with itself."""

    def __init__(self, rows: int, rank: int):
        super().__init__()
        self.rows = nn.Embedding(rows, rank)

    def forward(self, places: Tensor) -> Tensor:
        """places: (b, 2) int64; returns (b,)"""
        u = self.rows(places)
        return (u[:, 0] * u[:, 1]).sum(1)


@cache
def entries(rows: int, columns: int, rank: int, noise: float, biased: bool) -> Splits:
    """Places (b, 2) of a matrix of low rank, and its values there."""
    seeds = range(10 * rows, 10 * rows + 4)  # other ones for every number of rows
    u, v = fixed(rows, rank, seed=seeds[0]), fixed(columns, rank, seed=seeds[1])
    a, b = fixed(rows, seed=seeds[2]) * biased, fixed(columns, seed=seeds[3]) * biased

    def draw(count: int) -> Batch:
        i = torch.randint(rows, (count,))
        j = torch.randint(columns, (count,))
        value = (u[i] * v[j]).sum(1) / rank**0.5 + a[i] + b[j]
        return torch.stack([i, j], 1), value

    return generated(draw, noise)


@cache
def symmetric_entries(rows: int, rank: int, noise: float) -> Splits:
    """Places (b, 2) of a symmetric matrix of low rank, and its values there."""
    u = fixed(rows, rank, seed=10 * rows)

    def draw(count: int) -> Batch:
        places = torch.randint(rows, (count, 2))
        return places, u[places].prod(1).sum(1) / rank**0.5

    return generated(draw, noise)


def zipf(count: int, vocabulary: int) -> Tensor:
    """Tokens (count,): the k-th most frequent comes up about as often as 1 / k."""
    return (vocabulary ** torch.rand(count)).long().clamp(1, vocabulary) - 1


@cache
def labelled_tokens(vocabulary: int, classes: int, length: int) -> Splits:
    """Tokens (b, length) by Zipf's law; their label: what the rarest votes for."""
    generator = torch.Generator().manual_seed(vocabulary)
    votes = torch.randint(classes, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count * length, vocabulary).view(count, length)
        return tokens, votes[tokens.amax(1)]

    return generated(draw)


@cache
def successors(vocabulary: int, seed: int) -> Splits:
    """A token (b,) by Zipf's law, and one that follows it with probability .8."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randint(vocabulary, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count, vocabulary)
        other = zipf(count, vocabulary)
        return tokens, torch.where(torch.rand(count) < 0.8, follows[tokens], other)

    return generated(draw)


class TokenReader(nn.Module):
    """The mean of tokens' embeddings, then an MLP.

    std: of the table's normal numbers at the start.
    """

    def __init__(self, vocabulary: int, width: int, fan_out: int, std: float):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=std)
        self.layers = mlp((width, 2 * width, fan_out))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (b,) or (b, t) int64; returns (b, fan_out)"""
        values = self.table(tokens)
        return self.layers(values if tokens.dim() == 1 else values.mean(1))


def _units(columns: int, decades: float) -> Tensor:
    """Units of columns, (columns,): they span so many powers of ten."""
    return 10 ** (decades * (torch.linspace(0, 1, columns) - 0.5))


@cache
def unscaled_regression(columns: int, decades: float, seed: int) -> Splits:
    """Columns (b, columns) whose units span decades; target (b, 1): a small network."""
    unit = _units(columns, decades)
    seeds = range(100 * seed, 100 * seed + 3)
    first, last = fixed(columns, 16, seed=seeds[0]), fixed(16, 1, seed=seeds[1])
    shift = fixed(columns, seed=seeds[2])

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        target = (x @ first / columns**0.5).relu() @ last / 4
        return unit * (x + shift), target

    return generated(draw, 0.1)


@cache
def unscaled_classes(columns: int, decades: float, seed: int) -> Splits:
    """Columns whose units span decades; target: the nearest of three centres, (b,)."""
    unit = _units(columns, decades)
    centres = fixed(3, columns, seed=seed)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        return unit * x, torch.cdist(x, centres).argmin(1)

    return generated(draw)


_FACTORS: Kind = (
    [
        fit(
            "factors-100",
            partial(entries, 100, 80, 8, 0.05, False),
            partial(Factors, 100, 80, 8, 0.1, False),
            256,
            800,
        )
    ],
    [
        fit(
            "factors-biases-400",
            partial(entries, 400, 300, 4, 0.1, True),
            partial(Factors, 400, 300, 6, 0.1, True),
            512,
            600,
        )
    ],
    [
        fit(
            "factors-symmetric-150",
            partial(symmetric_entries, 150, 6, 0.05),
            partial(Symmetric, 150, 8),
            256,
            500,
        )
    ],
)


_TOKENS: Kind = (
    [
        classify(
            "tokens-labels-4096",
            partial(labelled_tokens, 4096, 8, 8),
            partial(TokenReader, 4096, 32, 8, 1.0),
            64,
            600,
        )
    ],
    [
        classify(
            "tokens-next-2048",
            partial(successors, 2048, 16),
            partial(TokenReader, 2048, 48, 2048, 0.02),
            256,
            300,
        )
    ],
    [
        classify(
            "tokens-labels-20000",
            partial(labelled_tokens, 20_000, 4, 6),
            partial(TokenReader, 20_000, 16, 4, 0.02),
            128,
            400,
        )
    ],
)


_COLUMNS: Kind = (
    [
        fit(
            "columns-regression-20",
            partial(unscaled_regression, 20, 3.0, 17),
            partial(mlp, (20, 64, 1)),
            64,
            500,
        ),
        classify(
            "columns-breast-cancer-300",
            partial(real_table, "breast_cancer"),
            partial(mlp, (30, 48, 2)),
            32,
            300,
        ),
    ],
    [
        classify(
            "columns-classes-30",
            partial(unscaled_classes, 30, 4.0, 20),
            partial(mlp, (30, 64, 64, 3)),
            64,
            400,
        ),
        fit(
            "columns-diabetes-400",
            partial(real_table, "diabetes"),
            partial(mlp, (10, 32, 32, 1), nn.Tanh),
            32,
            400,
        ),
    ],
    [
        fit(
            "columns-regression-12",
            partial(unscaled_regression, 12, 4.0, 21),
            partial(mlp, (12, 48, 48, 1), nn.SiLU),
            32,
            600,
        ),
        classify(
            "columns-wine-200",
            partial(real_table, "wine"),
            partial(mlp, (13, 32, 3), nn.SiLU),
            16,
            200,
        ),
    ],
)


KINDS: dict[str, Kind] = {
    "factorisation": _FACTORS,
    "rare tokens": _TOKENS,
    "unscaled columns": _COLUMNS,
}
