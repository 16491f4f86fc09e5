import re

import pytest
import torch

from harness.distributed import Ranks
from harness.errors import Interrupted
from tasks.shards import (
    Folder,
    Networks,
    read_manifest,
    read_shard,
    read_split,
    write_shard,
)
from tasks.sources.generation import Job, jobs, make_shards, missing


def networks(job):
    """As many as the job has items; the number of each is its quality."""
    items = torch.arange(job.start, job.stop)
    weights = torch.zeros(len(items), 2)
    return [Networks({"kind": "toy"}, {"weight": weights}, {"number": items.float()})]


@pytest.fixture
def made():
    """The jobs of which `make` has made networks."""
    return []


@pytest.fixture
def make(made):
    def make(job):
        made.append(job)
        return networks(job)

    return make


def test_jobs_cut_every_split_into_shards():
    assert list(jobs({"train": 5, "test": 2}, 2)) == [
        Job("train", 0, 0, 2),
        Job("train", 1, 2, 4),
        Job("train", 2, 4, 5),
        Job("test", 0, 0, 2),
    ]


def test_jobs_of_ranks_do_not_depend_on_existing_shards(tmp_path):
    folder = Folder(tmp_path, {})
    folder.begin()
    wanted = list(jobs({"train": 5}, 1))
    write_shard(folder.shard("train", 1), networks(wanted[1]))
    assert [job.number for job in missing(wanted, folder, Ranks(0, 2))] == [0, 2, 4]
    assert [job.number for job in missing(wanted, folder, Ranks(1, 2))] == [3]


def test_missing_shards_and_the_manifest_are_made(tmp_path, capsys, make, made):
    folder = Folder(tmp_path, {"steps": 3})
    wanted = list(jobs({"train": 5, "test": 1}, 2))
    make_shards(folder, wanted, make, ["number"])
    assert made == wanted
    # the mean of 0 to 4 and 0
    printed = capsys.readouterr().out
    assert "6 networks in" in printed and "mean number 1.67" in printed
    rows = read_manifest(tmp_path)["shards"]
    assert [row["networks"] for row in rows] == [1, 2, 2, 1]
    groups = read_split(tmp_path, "train")
    numbers = [group.columns["number"].tolist() for group in groups]
    assert numbers == [[0, 1], [2, 3], [4]]
    make_shards(folder, wanted, make, ["number"])
    assert made == wanted
    assert "a second" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [-3, 0])
def test_a_damaged_shard_is_made_again(tmp_path, capsys, kept, make, made):
    folder = Folder(tmp_path, {})
    wanted = list(jobs({"train": 4}, 2))
    make_shards(folder, wanted, networks, ["number"])
    path = folder.shard("train", 1)
    path.write_bytes(path.read_bytes()[:kept])
    capsys.readouterr()
    make_shards(folder, wanted, make, ["number"])
    assert made == wanted[1:]
    (group,) = read_shard(path)
    assert group.columns["number"].tolist() == [2, 3]
    message = capsys.readouterr().out
    assert f"made again: shard '{path}'" in message and "4 networks in" in message


def test_ctrl_c_raises_an_error_with_the_number_of_shards(tmp_path):
    folder = Folder(tmp_path, {})

    def make(job):
        if job.number == 1:
            raise KeyboardInterrupt
        return networks(job)

    message = f"folder '{tmp_path}' has 1 shards; the same command makes the others"
    with pytest.raises(Interrupted, match=re.escape(message)):
        make_shards(folder, list(jobs({"train": 4}, 2)), make, ["number"])
