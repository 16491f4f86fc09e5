"""Predicts the cost of a step on several H100s: the default beside AdamW and Muon.

    python -m benchmarks.sharding --output results/sharding.json

The default's steps run on torch's meta device as on each rank (`simulated_ranks`), with
parameters divided by rows as in FSDP2, or with `process_group=` under DDP. AdamW and
Muon are counted from their equations (`peers`). Weights are float32. Costs of device
and host are those of `benchmarks.cost_model` with compiled elementwise functions. A
collective takes 20 us plus its bytes over 300 GB/s, NVLink's rate in each direction. A
collective of the hosts takes 20 us for each other rank. Nothing of this was measured.

ms: a step with transfers that overlap with computation and ranks that wait for each
other (`timeline`), the mean over a cycle of renewals. longest: the longest step of the
cycle. device: the slowest rank without collectives; device_mean: the mean over ranks.
transfer: the collectives of the slowest rank. in_turn: computation of the slowest rank,
then its collectives, without overlap.

Of launches, bytes and memory the maximum over ranks is given. sent_share: relative to
the gradients and updates of a rank's parts. state_share: relative to an equal share of
the state of one process; mean_share: the same for the mean over ranks. memory_gb:
weights, gradients, state and transient memory.

The second table has the parts of the cost model on the default's slowest rank.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import Gpt, Llama
from benchmarks.sharding.peers import Parameters, adamw, muon
from benchmarks.sharding.simulated_ranks import ALONE, DDP, FSDP, Group, RankSteps
from benchmarks.sharding.timeline import Log, in_turn, play

MB, GB = 1e6, 1e9


def tied_gpt2() -> nn.Module:
    model = Gpt(50257, 1024, 768, 12, 12)
    model.lm_head.weight = model.wte.weight
    return model


class Case(NamedTuple):
    """A network and the ranks that train it."""

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

    logs: for each step of a cycle, those of all ranks. state, transient: bytes by rank.
    """

    logs: Sequence[Sequence[Log]]
    state: Sequence[int]
    transient: Sequence[int] = (0,)


def default_steps(group: Group, progress: Any) -> tuple[Steps, Record]:
    """Steps of all ranks, and milliseconds of the parts on the slowest."""
    ranks = []
    state = []
    transient = []
    for rank in range(group.size):
        own = group.steps(rank)
        ranks.append(own)
        state.append(own.state)
        transient.append(own.transient)
        progress.update()
    logs = list(zip(*(own.logs for own in ranks), strict=True))
    slowest = max(ranks, key=RankSteps.device_seconds)
    parts = {part: slowest.parts[part] for part in DEVICE_PARTS}
    return Steps(logs, state, transient), parts


def peer_steps(group: Group) -> dict[str, Steps]:
    """Steps of AdamW and Muon on all ranks."""
    shapes = {name: tuple(shape) for name, shape in group.shapes.items()}
    parts = []
    for rank in range(group.size):
        parts.append({name: tuple(group.held(name, rank)) for name in shapes})
    parameters = Parameters(shapes, parts, is_copied=group.division == DDP)
    muon_logs, muon_state = zip(*muon(parameters), strict=True)
    adamw_logs, adamw_state = zip(*adamw(parameters), strict=True)
    return {
        "Muon": Steps([muon_logs], muon_state),
        "AdamW": Steps([adamw_logs], adamw_state),
    }


def times_of(steps: Steps) -> Record:
    """Milliseconds of a step, and launches."""
    seconds = list(map(play, steps.logs))
    device = []
    transfer = 0.0
    launches = 0
    for logs in zip(*steps.logs, strict=True):
        device.append(fmean(log.device_seconds for log in logs))
        for log in logs:
            transfer = max(transfer, log.transfer_seconds())
            launches = max(launches, log.launches)
    return {
        "ms": 1e3 * fmean(seconds),
        "longest": 1e3 * max(seconds),
        "device": 1e3 * max(device),
        "device_mean": 1e3 * fmean(device),
        "transfer": 1e3 * transfer,
        "in_turn": 1e3 * fmean(map(in_turn, steps.logs)),
        "launches": launches,
    }


def bytes_of(steps: Steps, group: Group, whole: int) -> Record:
    """Sent and received, state and memory. whole: bytes of the state of one process."""
    sent = received = held = 0
    for rank, log in enumerate(steps.logs[0]):
        sent = max(sent, log.sent)
        received = max(received, log.received)
        held = max(held, group.held_bytes(rank))
    share = whole / group.size
    state = max(steps.state)
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
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--most", type=int, default=64, help="maximum number of ranks")
    options = parser.parse_args(arguments)
    cases = []
    ranks = 0
    for case in CASES:
        if case.network in options.networks and case.ranks <= options.most:
            cases.append(case)
            ranks += case.ranks
    wholes: dict[tuple[str, str], int] = {}
    steps_ms: list[Record] = []
    parts_ms: list[Record] = []
    with tqdm(total=ranks, unit="rank") as progress:
        for case in cases:
            group = Group(NETWORKS[case.network], case.division, case.ranks)
            default, parts = default_steps(group, progress)
            parts_ms.append({**case._asdict(), **parts})
            for name, steps in {"default": default, **peer_steps(group)}.items():
                # the first case of a network has one process
                whole = wholes.setdefault((case.network, name), steps.state[0])
                found = {**times_of(steps), **bytes_of(steps, group, whole)}
                steps_ms.append({**case._asdict(), "optimizer": name, **found})
            write(options.output, steps=steps_ms, parts_ms=parts_ms)
    print(table(steps_ms))
    print("\nmilliseconds of the default's slowest rank on the device")
    print(table(parts_ms))


if __name__ == "__main__":
    main()
