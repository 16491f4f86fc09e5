"""Random numbers from keys, so that they do not depend on order or process."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) from all integers of a key."""
    sequence = np.random.SeedSequence([k % 2**64 for k in key])
    return int(sequence.generate_state(2, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds torch's CPU generator by the key, and restores it after the body.

    A GPU in use is seeded too, and not restored.
    """
    generator = torch.default_generator
    before = generator.get_state()
    # torch.manual_seed is several times slower while no GPU is in use
    uses_gpu = torch.cuda.is_initialized()
    seed = torch.manual_seed if uses_gpu else generator.manual_seed
    seed(derive_seed(*key))
    try:
        yield
    finally:
        generator.set_state(before)
