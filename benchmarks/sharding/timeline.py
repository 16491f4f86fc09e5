"""Time of a step of several ranks.

Each rank has a log of its step: work of host and device, and collectives. `play`
simulates the logs of all ranks together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cost_model import LAUNCH

BANDWIDTH = 300e9  # bytes per second of a GPU in each direction
LATENCY = 20e-6  # seconds of a collective without its transfer

START, WAIT, HOST, END = "start", "wait", "host", "end"


class Segment(NamedTuple):
    """An event in a rank's step, and the work before it.

    seconds: of the device. launches: of the host. event: START or WAIT of a collective
    of devices, a collective of the HOST, or END of the step. number: of the collective.
    transfer: seconds of the collective.
    """

    seconds: float
    launches: int
    event: str
    number: int = 0
    transfer: float = 0.0


class Log:
    """The step of a rank. sent, received: bytes."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.sent = self.received = 0
        self._seconds, self._launches, self._count = 0.0, 0, 0

    def work(self, seconds: float, launches: int) -> None:
        self._seconds += seconds
        self._launches += launches

    def start(self, sent: int, received: int) -> int:
        """Starts a collective with these bytes of this rank; returns its number."""
        self.sent += sent
        self.received += received
        self._launches += 1
        number = self._count
        self._count += 1
        self._add(START, number, LATENCY + max(sent, received) / BANDWIDTH)
        return number

    def wait(self, number: int) -> None:
        """The following work of the device waits for a collective."""
        self._add(WAIT, number)

    def on_host(self, size: int) -> None:
        """A blocking collective of `size` hosts in a ring."""
        self._add(HOST, transfer=LATENCY * (size - 1))

    def end(self) -> None:
        self._add(END)

    def _add(self, event: str, number: int = 0, transfer: float = 0.0) -> None:
        segment = Segment(self._seconds, self._launches, event, number, transfer)
        self.segments.append(segment)
        self._seconds, self._launches = 0.0, 0

    @property
    def device_seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    @property
    def launches(self) -> int:
        return sum(segment.launches for segment in self.segments)

    def transfer_seconds(self, event: str = START) -> float:
        """The sum over collectives of devices, or of hosts."""
        return sum(x.transfer for x in self.segments if x.event == event)


def play(logs: Sequence[Log]) -> float:
    """Seconds until all ranks have completed the step.

    Work of a device begins after its launch. A collective begins when the devices of
    all ranks have reached it and the previous one has ended. Its time is that of the
    rank with the most bytes.
    """
    host = [0.0] * len(logs)
    device = [0.0] * len(logs)
    ends: list[float] = []
    for segments in zip(*(log.segments for log in logs), strict=True):
        event, number = segments[0].event, segments[0].number
        transfer = 0.0
        for rank, segment in enumerate(segments):
            if (segment.event, segment.number) != (event, number):
                raise ValueError(
                    f"play: expected one order of collectives; got {segments}"
                )
            host[rank] += LAUNCH * segment.launches
            device[rank] = max(device[rank] + segment.seconds, host[rank])
            transfer = max(transfer, segment.transfer)
        if event == START:
            ends.append(max([*device, *ends[-1:]]) + transfer)
        elif event == WAIT:
            device = [max(now, ends[number]) for now in device]
        elif event == HOST:
            host = [max(host) + transfer] * len(host)
    return max(*host, *device)


def in_turn(logs: Sequence[Log]) -> float:
    """Seconds without overlap: work of the slowest rank, then the slowest transfer."""
    work = 0.0
    transfer = 0.0
    for log in logs:
        host = LAUNCH * log.launches + log.transfer_seconds(HOST)
        work = max(work, log.device_seconds, host)
        transfer = max(transfer, log.transfer_seconds())
    return work + transfer
