"""How the updates of a metanet change over a run of known length."""

from dataclasses import dataclass
from typing import Any

from ngopt.schedule import with_horizon


@dataclass(frozen=True)
class Cooldown:
    """How updates change over a run whose number of steps is known (Hägele et al.
    2024).

    Attributes:
        gain: Multiplies updates until the last `share` of the steps, over which it
            falls linearly to zero.

    Raises:
        ValueError: If the gain is negative or the share not within (0, 1].
    """

    gain: float
    share: float

    def __post_init__(self) -> None:
        if self.gain < 0:
            raise ValueError(f"cooldown: expected a gain >= 0; got {self.gain}")
        if not 0 < self.share <= 1:
            raise ValueError(f"cooldown: expected a share in (0, 1]; got {self.share}")

    def height(self, now: Any, total_steps: int) -> Any:
        """What multiplies the update after `now` steps of `total_steps`."""
        return self.gain * with_horizon(now, now, total_steps, 0.0, self.share)
