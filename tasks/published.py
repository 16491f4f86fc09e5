"""Converts published networks into folders of shards (`tasks.shards`):
`python -m tasks.published --format cnn-zoo --source ... --folder data/cnn-zoo`.

Formats, and the files of their sources:

dwsnets: INRs of Navon et al. 2023. A JSON file {train, val, test: {path, label}}, with
lists in each entry, and paths relative to its folder; or {train, val, test: [path]} if
files have a label. One file a network has seq.{0, 1, ...}.{weight, bias}.

nfn: SIRENs of Zhou et al. 2023. A folder of NAME_<label>s/net<index>.pth, which have
net.{0, 1, ...}.linear.{weight, bias}, in the last layer without "linear".

cnn-zoo: the small CNN zoo of Unterthiner et al. 2020. A folder of weights.npy,
(networks, parameters); metrics.csv.gz, a row per network, with step, test_accuracy and
config.activation; and layout.csv, with varname, start_idx, end_idx and shape of every
parameter. Kernels are (height, width, in, out), matrices (in, out).

wild-park: CNNs of Kofinas et al. 2024. A JSON file {train, val, test: {path, score,
step}} as of dwsnets. One file a network has config, with lists of channels,
kernel_size, stride, padding, residual (-1 for no skip) and activation of layers, and
model, with weight and bias of layers.{0, 1, ...} and fc.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from harness import cli
from harness.settings import check_counts
from tasks.shards import SPLITS, Folder, Networks, merged_by_architecture, write_shard
from tasks.sources.generation import summary
from tasks.sources.published_cnns import read_cnn_zoo, read_wild_park
from tasks.sources.published_inrs import read_dwsnets, read_nfn

PROGRAM = "tasks.published"

READERS: dict[str, Callable[[Path, str], Iterator[Networks]]] = {
    "dwsnets": read_dwsnets,
    "nfn": read_nfn,
    "cnn-zoo": read_cnn_zoo,
    "wild-park": read_wild_park,
}
"""(source, split) -> networks, one or several of one architecture at a time."""


@dataclass(frozen=True)
class PublishedConfig:
    format: Literal["dwsnets", "nfn", "cnn-zoo", "wild-park"]
    source: str
    """File or folder that was published."""
    folder: str
    """Where shards and manifest go."""
    shard: int = 256
    """Networks of a shard."""

    def __post_init__(self) -> None:
        check_counts(self, "shard")


def convert(config: PublishedConfig) -> None:
    """Writes all splits as shards. Raises ValueError, which names a damaged file."""
    source = Path(config.source)
    settings = {
        "program": PROGRAM,
        "format": config.format,
        "source": source.name,
        "shard": config.shard,
    }
    folder = Folder(Path(config.folder), settings)
    has_accuracy = False
    for split in SPLITS:
        networks = tqdm(READERS[config.format](source, split), desc=split)
        for number, groups in enumerate(shards(networks, config.shard)):
            folder.begin()
            write_shard(folder.shard(split, number), groups)
            has_accuracy = "accuracy" in groups[0].columns
    print(summary(folder, ["accuracy"] if has_accuracy else []))


def shards(networks: Iterable[Networks], size: int) -> Iterator[list[Networks]]:
    """Shards of at least `size` networks, except for the last, in groups of one
    architecture each."""
    groups: list[Networks] = []
    for group in networks:
        groups.append(group)
        if sum(map(len, groups)) >= size:
            yield merged_by_architecture(groups)
            groups = []
    if groups:
        yield merged_by_architecture(groups)


if __name__ == "__main__":
    cli.main(PublishedConfig, convert, __doc__)
