"""Predicts what a step costs on several H100s, of the default beside AdamW and Muon.

    python -m benchmarks.sharding --output results/sharding.json

The default makes its real steps on torch's meta device, as every rank would make them
(`simulated_ranks`), with parameters that FSDP2 divides by rows, or with
`process_group=` under DDP. AdamW and Muon are counted from their equations
(`peers`). Weights are float32. Device and host cost what
`benchmarks.cost_model` says, with compiled elementwise functions. A collective takes 20
us and its bytes over 300 GB/s, as NVLink gives each GPU to send and as much to receive;
one of the host takes 20 us for each other rank. Nothing of this was measured.

ms: a step, in which ranks wait for each other, and what they send travels while they
compute (`timeline`); the mean over a cycle of renewals. longest: the longest
step of the cycle. device: of the slowest rank without collectives; device_mean: of all
ranks. transfer: the collectives of the slowest rank alone. in_turn: the slowest rank,
then its collectives, without waiting for others. launches: of the rank with the most.

sent_mb, received_mb: of the ranks with the most; sent_share: in bytes of the gradients
and the changes of a rank's parts. state_gb: of the rank with the most; state_share: the
same in its share of the state of one process; mean_share: of all ranks. memory_gb:
weights, gradients, state and what a step of the default allocates, of the rank with the
most.

The second table has the parts of the cost model on the default's slowest rank.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from benchmarks.records import Record, table, write
from benchmarks.shapes import Gpt, Llama
from benchmarks.sharding.peers import Parameters, adamw, muon
from benchmarks.sharding.simulated_ranks import ALONE, DDP, FSDP, Group
from benchmarks.sharding.timeline import Log, in_turn, play

MB, GB = 1e6, 1e9


def tied_gpt2() -> nn.Module:
    model = Gpt(50257, 1024, 768, 12, 12)
    model.lm_head.weight = model.wte.weight
    return model


class Case(NamedTuple):
    """Ranks that train a network."""

    network: str
    division: str
    ranks: int


DEVICE_PARTS = "rotation", "factors", "renewal", "elementwise_fused", "scalars"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2 124M": tied_gpt2,
    "Llama 7B": partial(Llama, 32000, 4096, 32, 11008, 32),
}
# With DDP, weights and gradients of 7B leave no room for activations.
CASES = (
    Case("GPT-2 124M", ALONE, 1),
    Case("GPT-2 124M", FSDP, 8),
    Case("GPT-2 124M", FSDP, 64),
    Case("GPT-2 124M", DDP, 8),
    Case("GPT-2 124M", DDP, 64),
    Case("Llama 7B", ALONE, 1),
    Case("Llama 7B", FSDP, 8),
    Case("Llama 7B", FSDP, 64),
)


class Steps(NamedTuple):
    """Steps of an optimizer.

    logs: of the ranks, in every step of a cycle. state, transient: bytes by rank.
    """

    logs: Sequence[Sequence[Log]]
    state: Sequence[int]
    transient: Sequence[int] = (0,)


def default_steps(group: Group, progress: Any) -> tuple[Steps, Record]:
    """Those of all ranks, and milliseconds by parts of the slowest."""
    found = []
    for rank in range(group.size):
        found.append(group.steps(rank))
        progress.update()
    logs = list(zip(*(own.logs for own in found), strict=True))
    state, transient = [x.state for x in found], [x.transient for x in found]
    slowest = max(found, key=lambda own: sum(log.device_seconds for log in own.logs))
    parts = {part: slowest.parts[part] for part in DEVICE_PARTS}
    return Steps(logs, state, transient), parts


def peer_steps(group: Group) -> dict[str, Steps]:
    """Of AdamW and Muon, on all ranks."""
    shapes = {name: tuple(shape) for name, shape in group.shapes.items()}
    parts = [
        {name: tuple(group.held(name, rank)) for name in shapes}
        for rank in range(group.size)
    ]
    parameters = Parameters(shapes, parts, is_copied=group.division == DDP)
    found = {}
    for name, make in {"Muon": muon, "AdamW": adamw}.items():
        logs, state = zip(*make(parameters), strict=True)
        found[name] = Steps([logs], state)
    return found


def times_of(steps: Steps) -> Record:
    """Milliseconds of a step, and launches."""
    played = [play(logs) for logs in steps.logs]
    device = [
        fmean(log.device_seconds for log in own)
        for own in zip(*steps.logs, strict=True)
    ]
    logs = list(chain.from_iterable(steps.logs))
    return {
        "ms": 1e3 * fmean(played),
        "longest": 1e3 * max(played),
        "device": 1e3 * max(device),
        "device_mean": 1e3 * fmean(device),
        "transfer": 1e3 * max(log.transfer_seconds for log in logs),
        "in_turn": 1e3 * fmean(map(in_turn, steps.logs)),
        "launches": max(log.launches for log in logs),
    }


def bytes_of(steps: Steps, group: Group, whole: int) -> Record:
    """Sent and received, state and memory. whole: bytes of the state of one process."""
    logs = steps.logs[0]
    sent, received = max(x.sent for x in logs), max(x.received for x in logs)
    held = max(group.held_bytes(rank) for rank in range(group.size))
    share, state = whole / group.size, max(steps.state)
    return {
        "sent_mb": sent / MB,
        "received_mb": received / MB,
        "sent_share": sent / (2 * held),
        "state_gb": state / GB,
        "state_share": state / share,
        "mean_share": fmean(steps.state) / share,
        "memory_gb": (2 * held + state + max(steps.transient)) / GB,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--most", type=int, default=64, help="ranks, at most")
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in CASES
        if case.network in options.networks and case.ranks <= options.most
    ]
    wholes: dict[tuple[str, str], int] = {}
    steps_ms: list[Record] = []
    parts_ms: list[Record] = []
    with tqdm(total=sum(case.ranks for case in cases), unit="rank") as progress:
        for case in cases:
            group = Group(NETWORKS[case.network], case.division, case.ranks)
            default, parts = default_steps(group, progress)
            parts_ms.append({**case._asdict(), **parts})
            for name, steps in {"default": default, **peer_steps(group)}.items():
                # the first case of a network is one process
                whole = wholes.setdefault((case.network, name), steps.state[0])
                found = {**times_of(steps), **bytes_of(steps, group, whole)}
                steps_ms.append({**case._asdict(), "optimizer": name, **found})
            write(options.output, steps=steps_ms, parts_ms=parts_ms)
    print(table(steps_ms))
    print("\nmilliseconds of the default's slowest rank on the device")
    print(table(parts_ms))


if __name__ == "__main__":
    main()
