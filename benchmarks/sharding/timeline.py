"""How long a step takes that several ranks make together.

Each rank has a log of its step: work of host and device, and collectives. `play` runs
the logs of all ranks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cost_model import LAUNCH

BANDWIDTH = 300e9  # bytes a second that a GPU sends, and as many that it receives
LATENCY = 20e-6  # seconds of a collective beside its bytes

START, WAIT, HOST, END = "start", "wait", "host", "end"


class Segment(NamedTuple):
    """The work of a rank up to an event, and the event.

    seconds: of the device. launches: of the host. event: START and WAIT of a collective
    of the devices, a collective of the HOST, or END of the step. number: of the
    collective. transfer: its seconds.
    """

    seconds: float
    launches: int
    event: str
    number: int = 0
    transfer: float = 0.0


class Log:
    """The step of a rank. sent, received: bytes of its device."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.sent = self.received = 0
        self._seconds, self._launches, self._count = 0.0, 0, 0

    def work(self, seconds: float, launches: int) -> None:
        self._seconds += seconds
        self._launches += launches

    def start(self, sent: int, received: int) -> int:
        """Starts a collective in which this rank has so many bytes: its number."""
        self.sent += sent
        self.received += received
        self._launches += 1
        number, self._count = self._count, self._count + 1
        seconds = LATENCY + max(sent, received) / BANDWIDTH
        self._add(START, number, seconds)
        return number

    def wait(self, number: int) -> None:
        """What follows on the device needs the result of a collective."""
        self._add(WAIT, number)

    def on_host(self, size: int) -> None:
        """A collective of so many hosts, which waits for it; values go round a ring."""
        self._add(HOST, transfer=LATENCY * (size - 1))

    def end(self) -> None:
        self._add(END)

    def _add(self, event: str, number: int = 0, transfer: float = 0.0) -> None:
        done = self._seconds, self._launches
        self.segments.append(Segment(*done, event, number, transfer))
        self._seconds, self._launches = 0.0, 0

    @property
    def device_seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    @property
    def host_seconds(self) -> float:
        waits = sum(x.transfer for x in self.segments if x.event == HOST)
        return LAUNCH * self.launches + waits

    @property
    def launches(self) -> int:
        return sum(segment.launches for segment in self.segments)

    @property
    def transfer_seconds(self) -> float:
        """Of its collectives, one after the other."""
        return sum(x.transfer for x in self.segments if x.event == START)


def play(logs: Sequence[Log]) -> float:
    """Seconds until all ranks have made the step.

    A device begins what its host has launched. A collective begins when the devices of
    all ranks have come to it and the one before has ended, and takes as long as that of
    the rank with the most bytes.
    """
    host, device = [0.0] * len(logs), [0.0] * len(logs)
    ends: list[float] = []
    for segments in zip(*(log.segments for log in logs), strict=True):
        event, number = segments[0][2:4]
        if any(segment[2:4] != (event, number) for segment in segments):
            raise ValueError(f"play: expected one order of collectives; got {segments}")
        for rank, segment in enumerate(segments):
            host[rank] += LAUNCH * segment.launches
            device[rank] = max(device[rank] + segment.seconds, host[rank])
        transfer = max(segment.transfer for segment in segments)
        if event == START:
            ends.append(max([*device, *ends[-1:]]) + transfer)
        elif event == WAIT:
            device = [max(now, ends[number]) for now in device]
        elif event == HOST:
            host = [max(host) + transfer] * len(host)
    return max(*host, *device)


def in_turn(logs: Sequence[Log]) -> float:
    """Seconds without overlap: the slowest rank computes, then the slowest sends."""
    working = max(max(log.device_seconds, log.host_seconds) for log in logs)
    return working + max(log.transfer_seconds for log in logs)
