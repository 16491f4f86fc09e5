"""Random numbers keyed by what they are for, so that neither order nor process changes
them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) that depends on every integer of the key;
    nearby keys give unrelated seeds."""
    sequence = np.random.SeedSequence([k % 2**64 for k in key])
    words = sequence.generate_state(2, np.uint64)
    return int(words[0] >> np.uint64(1))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Runs its body with torch's CPU generator seeded by the key,
    and restores the generator after.

    A GPU that is in use is seeded, too, and not restored.
    """
    generator = torch.default_generator
    before = generator.get_state()
    # of a GPU that is not, torch would take a note with each seed, which takes several
    # times as long as the rest
    is_alone = not torch.cuda.is_initialized()
    seed = generator.manual_seed if is_alone else torch.manual_seed
    seed(derive_seed(*key))
    try:
        yield
    finally:
        generator.set_state(before)
