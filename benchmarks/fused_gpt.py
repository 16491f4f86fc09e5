"""Muon on the parameters of a GPT with fused matrices, and on the matrices inside.

    python -m benchmarks.fused_gpt --output results/fused_gpt.json

Each of four layers has one matrix of queries, keys and values of eight heads, and one
of both halves of a gated unit. Muon's learning rate is the best of `RATES` for whole
parameters, with a seed of its own; AdamW has the others. All fall as a cosine to zero.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import causal_attention
from harness.random import seeded
from meta_train.problems.text import TEXT_64, VOCABULARY
from ngopt import BlockwiseOptimizer, optimizer_groups
from ngopt.race.muon import float32_products

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 4, 128, 8, 64, 12
RATES = 0.005, 0.01, 0.02, 0.05, 0.1
ADAMW: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.0}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "parameters": None,
    "matrices": {},
    "groups of four heads": {"heads": 4},
    "groups of two heads": {"heads": 2},
    "heads": {"heads": 1},
}
"""Name -> settings of `BlockwiseOptimizer`, None without it."""
TUNING_SEED = 100


class Block(nn.Module):
    """Attention and a gated unit, both with a norm before and a sum after."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.w13 = nn.Linear(WIDTH, 6 * WIDTH, bias=False)
        self.w2 = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(causal_attention(self.qkv(self.norm1(x)), HEADS))
        gate, up = self.w13(self.norm2(x)).chunk(2, -1)
        return x + self.w2(F.silu(gate) * up)


class FusedGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        places = torch.arange(codes.shape[1], device=codes.device)
        x = self.tokens(codes) + self.places(places)
        return self.head(self.norm(self.blocks(x)))


def optimizers_of(
    model: nn.Module, settings: dict[str, Any] | None, lr: float
) -> list[Optimizer]:
    """settings: of `BlockwiseOptimizer`, None without it."""
    muon: dict[str, Any] = {"lr": lr, "weight_decay": 0.0}
    codes = torch.zeros(1, LENGTH, dtype=torch.int64)
    if settings is not None:
        blockwise = BlockwiseOptimizer(
            model, codes, Muon, muon, others_options=ADAMW, **settings
        )
        return [blockwise]
    groups = optimizer_groups(model, codes)
    hidden = [group for group in groups if group["role"] == "matrix"]
    others = [group for group in groups if group["role"] != "matrix"]
    return [Muon(hidden, **muon), torch.optim.AdamW(others, **ADAMW)]


def final_loss(
    settings: dict[str, Any] | None, lr: float, seed: int, steps: int
) -> float:
    """Validation loss per character after training."""
    splits = TEXT_64()
    with seeded(seed):
        model = FusedGpt()
        optimizers = optimizers_of(model, settings, lr)
        schedules = [
            LambdaLR(x, lambda t: 0.5 + 0.5 * math.cos(math.pi * t / steps))
            for x in optimizers
        ]
        for _ in range(steps):
            chosen = torch.randint(len(splits.train), (BATCH,))
            codes, targets = splits.train.batch(chosen)
            model.zero_grad()
            F.cross_entropy(model(codes).flatten(0, 1), targets.flatten()).backward()
            for x in (*optimizers, *schedules):
                x.step()
    with torch.no_grad():
        codes, targets = splits.validation.batch(torch.arange(len(splits.validation)))
        logits = model(codes).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten()).item()


def compare(seeds: int, steps: int) -> tuple[list[Record], list[Record]]:
    """Losses of Muon's rates on whole parameters, and of the variants at the best."""
    progress = tqdm(total=len(RATES) + seeds * len(VARIANTS), unit="run")

    def measured(name: str, lr: float, seed: int) -> float:
        progress.set_description(f"{name}, lr {lr:g}, seed {seed}")
        loss = final_loss(VARIANTS[name], lr, seed, steps)
        progress.update()
        return loss

    tuned = [
        {"lr": lr, "loss": measured("parameters", lr, TUNING_SEED)} for lr in RATES
    ]
    best = min(tuned, key=lambda record: record["loss"])["lr"]
    rows = []
    for name in VARIANTS:
        losses = [measured(name, best, seed) for seed in range(seeds)]
        rows.append({"Muon on": name, "lr": best, **_summary(losses)})
    return tuned, rows


def _summary(losses: Sequence[float]) -> Record:
    deviation = stdev(losses) if len(losses) > 1 else math.nan
    return {"loss": mean(losses), "deviation": deviation, "losses": list(losses)}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with float32_products():
        tuned, rows = compare(arguments.seeds, arguments.steps)
    printed = [
        {
            "Muon on": row["Muon on"],
            "loss": f"{row['loss']:.4f} +- {row['deviation']:.4f}",
        }
        for row in rows
    ]
    print(table(printed))
    output: Path | None = arguments.output
    write(output, tuned=tuned, variants=rows)


if __name__ == "__main__":
    main()
