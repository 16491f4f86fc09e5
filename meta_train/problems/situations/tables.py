"""Matrix factorisation, rare tokens, and columns with different units."""

from functools import cache

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
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
        self.row_bias = self.column_bias = None
        if biases:
            self.row_bias = nn.Parameter(torch.zeros(rows))
            self.column_bias = nn.Parameter(torch.zeros(columns))

    def forward(self, places: Tensor) -> Tensor:
        """places: (b, 2) int64; returns (b,)"""
        i, j = places.unbind(1)
        products = self.rows(i) * self.columns(j)
        entries = products.sum(1)
        if self.row_bias is not None and self.column_bias is not None:
            entries = entries + self.row_bias[i]
            entries = entries + self.column_bias[j]
        return entries


class Symmetric(nn.Module):
    """A symmetric factorised matrix: u_i . u_j."""

    def __init__(self, rows: int, rank: int):
        super().__init__()
        self.rows = nn.Embedding(rows, rank)

    def forward(self, places: Tensor) -> Tensor:
        """places: (b, 2) int64; returns (b,)"""
        u = self.rows(places)
        products = u[:, 0] * u[:, 1]
        return products.sum(1)


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
        places = torch.stack([i, j], 1)
        products = u[i] * v[j]
        value = products.sum(1) / rank**0.5
        return places, value + row_bias[i] + column_bias[j]

    return generated(draw, noise)


@cache
def symmetric_entries(rows: int, rank: int, noise: float) -> Splits:
    """Indices (b, 2) and entries (b,) of a symmetric matrix of low rank."""
    u = fixed(rows, rank, seed=10 * rows)

    def draw(count: int) -> Batch:
        places = torch.randint(rows, (count, 2))
        products = u[places].prod(1)
        return places, products.sum(1) / rank**0.5

    return generated(draw, noise)


def zipf(count: int, vocabulary: int) -> Tensor:
    """Tokens (count,); the k-th has a probability of about 1 / k (Zipf's law)."""
    tokens = (vocabulary ** torch.rand(count)).long()
    return tokens.clamp(1, vocabulary) - 1


@cache
def labelled_tokens(vocabulary: int, classes: int, length: int) -> Splits:
    """Tokens (b, length) by Zipf's law, with the label of the rarest token, (b,)."""
    generator = torch.Generator().manual_seed(vocabulary)
    label_of = torch.randint(classes, (vocabulary,), generator=generator)

    def draw(count: int) -> Batch:
        tokens = zipf(count * length, vocabulary)
        tokens = tokens.view(count, length)
        rarest = tokens.amax(1)
        return tokens, label_of[rarest]

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
        successors = torch.where(is_fixed, successor_of[tokens], other)
        return tokens, successors

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
    places = torch.linspace(0, 1, columns) - 0.5
    return 10 ** (decades * places)


@cache
def unscaled_regression(columns: int, decades: float, seed: int) -> Splits:
    """Columns (b, columns) with different units; targets (b, 1) of a small network."""
    unit = _units(columns, decades)
    first = fixed(columns, 16, seed=100 * seed)
    last = fixed(16, 1, seed=100 * seed + 1)
    shift = fixed(columns, seed=100 * seed + 2)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        hidden = x @ first / columns**0.5
        targets = hidden.relu() @ last / 4
        return unit * (x + shift), targets

    return generated(draw, 0.1)


@cache
def unscaled_classes(columns: int, decades: float, seed: int) -> Splits:
    """Columns with different units; labels (b,): the nearest of three centres."""
    unit = _units(columns, decades)
    centres = fixed(3, columns, seed=seed)

    def draw(count: int) -> Batch:
        x = torch.randn(count, columns)
        distances = torch.cdist(x, centres)
        return unit * x, distances.argmin(1)

    return generated(draw)
