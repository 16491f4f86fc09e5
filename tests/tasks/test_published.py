import pytest

from tasks.published import PublishedConfig, convert
from tasks.shards import read_manifest, read_split, shard_paths
from tests.tasks.sources.published import write_wild_park


@pytest.fixture
def source(tmp_path):
    return write_wild_park(tmp_path)


def test_shards_of_all_splits_are_written(source, tmp_path, capsys):
    folder = tmp_path / "shards"
    convert(PublishedConfig("wild-park", str(source), str(folder), shard=2))
    names = [path.name for path in shard_paths(folder, "train")]
    assert names == ["train-00000.safetensors", "train-00001.safetensors"]
    groups = read_split(folder, "validation")
    steps = [step for group in groups for step in group.columns["step"].tolist()]
    assert steps == [0, 1, 2]
    assert read_manifest(folder)["settings"]["format"] == "wild-park"
    assert "9 networks in" in capsys.readouterr().out


def test_shards_of_another_size_are_not_mixed(source, tmp_path):
    folder = str(tmp_path / "shards")
    convert(PublishedConfig("wild-park", str(source), folder, shard=2))
    with pytest.raises(ValueError, match="shard 2, got 1"):
        convert(PublishedConfig("wild-park", str(source), folder, shard=1))
    with pytest.raises(ValueError, match="shard: expected 1 or more"):
        PublishedConfig("wild-park", str(source), folder, shard=0)


def test_a_missing_source_makes_no_folder(tmp_path):
    folder = tmp_path / "shards"
    with pytest.raises(ValueError, match="mistyped"):
        convert(PublishedConfig("wild-park", str(tmp_path / "mistyped"), str(folder)))
    assert not folder.exists()
