"""Rounds the weights of a metanet, so that a wheel with them is smaller:
`python -m meta_train.training.round_weights --weights nfn --output nfn.safetensors`.

The lowest bits of the mantissas become zero, which zip files compress. The file is
float32 as before.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness import cli
from harness.files import make_folder
from meta_train.training.rules import as_learned
from meta_train.training.weights import with_stage
from ngopt.pretrained import load_pretrained, save_pretrained, weights_hash

MANTISSA = 23  # stored bits of float32


@dataclass(frozen=True)
class Config:
    """Settings of the rounding."""

    weights: str
    """A bundled name or a weights file, with one of the package's metanets."""
    output: str
    """Where the rounded weights go."""
    bits: int = 18
    """Bits of the mantissa that are kept, of 23."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits < MANTISSA:
            raise ValueError(f"bits: expected 1 to {MANTISSA - 1}; got {self.bits}")


def run(config: Config) -> None:
    learned = as_learned(load_pretrained(config.weights))
    metanet = learned.metanet
    before = weights_hash(learned)
    largest = 0.0
    with torch.no_grad():
        for parameter in metanet.parameters():
            rounded = round_mantissa(parameter, config.bits)
            change = (rounded - parameter) / parameter
            largest = max(largest, change.nan_to_num(0).abs().max().item())
            parameter.copy_(rounded)
    details = {"mantissa_bits": config.bits, "rounded_from": before}
    output = Path(config.output)
    make_folder(output.parent)
    staged = with_stage(learned, "meta_train.training.round_weights", details)
    save_pretrained(staged, output)
    print(f"largest relative change {largest:.2g} -> {output}")


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """float32 values with `bits` stored bits of mantissa: the nearest, ties to even."""
    mantissa, exponent = x.frexp()
    levels = 2 ** (bits + 1)
    return ((mantissa * levels).round() / levels).ldexp(exponent)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
