"""Makes folders of shards on one or several ranks, and resumes unfinished ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from tqdm import tqdm

from harness.distributed import Ranks, process_group
from harness.errors import Interrupted
from harness.settings import named_settings
from tasks.shards import Folder, Networks, read_shard, shard_paths, write_shard

# Settings that change no network.
IRRELEVANT = ("folder", "processes")


class Job(NamedTuple):
    """One shard: items number start to stop of a split."""

    split: str
    number: int
    start: int
    stop: int


def folder_of(config: Any, program: str) -> Folder:
    """The folder of a program, with all settings on which its networks depend."""
    settings = named_settings(config, IRRELEVANT)
    return Folder(Path(config.folder), {"program": program, **settings})


def jobs(counts: Mapping[str, int], shard: int) -> Iterator[Job]:
    """All shards of a folder. counts: items of every split. shard: items of one."""
    for split, count in counts.items():
        for number, start in enumerate(range(0, count, shard)):
            yield Job(split, number, start, min(start + shard, count))


def missing(wanted: Iterable[Job], folder: Folder, ranks: Ranks) -> list[Job]:
    """The jobs of a rank whose shard is missing, or damaged, which is printed.

    The jobs of a rank do not depend on the shards that exist, since other ranks may be
    writing already.
    """
    jobs_of_rank = [job for index, job in enumerate(wanted) if ranks.owns(index)]
    return [job for job in jobs_of_rank if not _is_intact(folder, job)]


def _is_intact(folder: Folder, job: Job) -> bool:
    path = folder.shard(job.split, job.number)
    if not path.exists():
        return False
    try:
        read_shard(path)
    except ValueError as error:
        tqdm.write(f"made again: {error}")
        return False
    return True


def make_shards(
    folder: Folder,
    wanted: Iterable[Job],
    make: Callable[[Job], Sequence[Networks]],
    quality: Sequence[str],
) -> None:
    """Makes the shards that are missing or damaged, and writes the manifest.

    make: the groups of a shard. quality: columns whose means are in the manifest.

    Raises ValueError if the folder was begun with other settings, and Interrupted for
    Ctrl-C.
    """
    folder.begin()
    try:
        with process_group() as ranks:
            start, made = perf_counter(), 0
            jobs = missing(wanted, folder, ranks)
            for job in tqdm(jobs, unit="shard", disable=not ranks.is_first):
                groups = make(job)
                write_shard(folder.shard(job.split, job.number), groups)
                made += sum(map(len, groups))
            speed = made / (perf_counter() - start)
            ranks.all_gather({ranks.number: made})  # waits for all
            if ranks.is_first:
                rate = f", {speed:.1f} a second on each of {ranks.count} processes"
                print(f"{summary(folder, quality)}{rate if made else ''}")
    except KeyboardInterrupt:
        count = len(shard_paths(folder.path))
        raise Interrupted(
            f"folder '{folder.path}' has {count} shards; "
            "the same command makes the others"
        ) from None


def summary(folder: Folder, quality: Sequence[str]) -> str:
    """Writes the manifest. Returns the number of networks and their mean quality."""
    rows = folder.finish(quality)
    total = sum(row["networks"] for row in rows)
    text = f"{total} networks in {folder.path}"
    for key in quality:
        mean = sum(row["networks"] * row[key] for row in rows) / total
        text += f", mean {key} {mean:.3g}"
    return text
