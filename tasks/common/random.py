"""Random numbers keyed by what they are for, so that neither order nor process changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) that depends on every integer of the key;
    nearby keys give unrelated seeds."""
    words = np.random.SeedSequence([k % 2**64 for k in key]).generate_state(
        2, np.uint64
    )
    return int(words[0] >> np.uint64(1))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Runs its body with torch's CPU generator seeded by the key,
    and restores the generator after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*key))
        yield
