import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.shards import (
    MANIFEST,
    Folder,
    Networks,
    check_column,
    merged,
    read_manifest,
    read_settings,
    read_shard,
    read_split,
    write_shard,
)


def networks(count=3, width=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = {"weight": torch.randn(count, width, 4, generator=generator)}
    columns = {"label": torch.arange(count), "psnr": torch.ones(count)}
    return Networks({"kind": "toy", "width": width}, params, columns)


def assert_same(group, expected):
    assert group.architecture == expected.architecture
    for part in ("params", "columns"):
        tensors, others = getattr(group, part), getattr(expected, part)
        torch.testing.assert_close(tensors, others, rtol=0, atol=0)


def test_a_shard_holds_networks_of_several_architectures(tmp_path):
    groups = [networks(), networks(2, width=5, seed=1)]
    write_shard(tmp_path / "train-00000.safetensors", groups)
    stored = read_shard(tmp_path / "train-00000.safetensors")
    for group, expected in zip(stored, groups, strict=True):
        assert_same(group, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.safetensors"]


def test_a_folder_is_made_with_one_set_of_settings(tmp_path):
    folder = Folder(tmp_path / "some", {"steps": 3})
    folder.begin()
    write_shard(folder.shard("train", 0), [networks()])
    write_shard(folder.shard("test", 0), [networks(2)])
    folder.begin()
    rows = folder.finish(["psnr"])
    assert rows == [
        {"file": "test-00000.safetensors", "networks": 2, "psnr": 1.0},
        {"file": "train-00000.safetensors", "networks": 3, "psnr": 1.0},
    ]
    assert read_manifest(folder.path)["shards"] == rows
    message = r"some': made with other settings: steps 3, got 4"
    with pytest.raises(ValueError, match=message):
        Folder(folder.path, {"steps": 4}).begin()


def test_a_folder_without_shards_may_begin_with_other_settings(tmp_path):
    Folder(tmp_path, {"steps": 3}).begin()
    Folder(tmp_path, {"steps": 4}).begin()
    assert read_manifest(tmp_path)["settings"] == {"steps": 4}


def test_settings_of_another_program_are_refused(tmp_path):
    settings = {"program": "tasks.some", "steps": 3}
    Folder(tmp_path, settings).begin()
    assert read_settings(tmp_path, "tasks.some") == settings
    message = r"expected networks of tasks.other; got those of tasks.some"
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path, "tasks.other")


def test_splits(tmp_path):
    Folder(tmp_path, {}).begin()
    for number in range(2):
        path = tmp_path / f"train-0000{number}.safetensors"
        write_shard(path, [networks(seed=number)])
    first, second = read_split(tmp_path, "train")
    together = merged([first, second])
    assert len(together) == 6
    assert torch.equal(together.params["weight"][3:], second.params["weight"])
    with pytest.raises(ValueError, match="expected shards of split 'test'; got none"):
        list(read_split(tmp_path, "test"))
    message = "expected architecture .*'width': 2.*; got .*'width': 5"
    with pytest.raises(ValueError, match=message):
        merged([networks(), networks(width=5)])


def test_an_unfinished_folder_is_read_with_a_message(tmp_path, capsys):
    folder = Folder(tmp_path, {})
    folder.begin()
    write_shard(folder.shard("train", 0), [networks()])
    assert len(list(read_split(tmp_path, "train"))) == 1
    message = "not finished: split 'train' has 1 shards, 0 of them in the"
    assert message in capsys.readouterr().out
    folder.finish([])
    assert len(list(read_split(tmp_path, "train"))) == 1
    assert not capsys.readouterr().out


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        folder = Folder(tmp_path, {})
        folder.begin()
        write_shard(folder.shard("train", 0), [networks()])
        write_shard(folder.shard("train", 1), [networks(seed=1)])
        folder.finish([])
        return tmp_path / "train-00000.safetensors"

    def test_of_a_byte(self, path):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        message = r"train-00000.safetensors': expected contents with the recorded"
        with pytest.raises(ValueError, match=message):
            read_shard(path)

    @pytest.mark.parametrize(
        "damage, message",
        [
            (
                lambda path: path.write_bytes(path.read_bytes()[:-5]),
                "expected a complete safetensors file.*",
            ),
            (Path.unlink, ".*"),
        ],
        ids=["end", "all"],
    )
    def test_of_a_shard(self, path, damage, message):
        damage(path)
        message = f"shard '.*train-00000.safetensors': {message}. Run the command that"
        with pytest.raises(ValueError, match=message):
            list(read_split(path.parent, "train"))

    @pytest.mark.parametrize("value", [-1.0, 2.0, float("nan")])
    def test_of_a_column(self, value):
        columns = {"accuracy": torch.tensor([0.0, 1.0, value])}
        message = f"'a': accuracy: expected 0 to 1; got {value:g}"
        with pytest.raises(ValueError, match=message):
            check_column("a", columns, "accuracy", 1)
        check_column("a", {"accuracy": torch.ones(2)}, "accuracy", 1)
        with pytest.raises(ValueError, match="a column 'step'; got none"):
            check_column("a", columns, "step", 1)

    def test_of_the_format(self, path):
        save_file({"x": torch.ones(1)}, path, {"format": "other"})
        message = "expected format 'ngopt-shard-1'; got 'other'"
        with pytest.raises(ValueError, match=message):
            read_shard(path)

    def test_of_the_manifest(self, tmp_path):
        with pytest.raises(ValueError, match="manifest.*: expected JSON; got: "):
            read_manifest(tmp_path)
        (tmp_path / MANIFEST).write_text(json.dumps({"format": "x"}))
        message = "format: expected 'ngopt-shard-1'; got 'x'"
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path)

    @pytest.mark.parametrize("key", ["settings", "shards"])
    def test_of_a_field_of_the_manifest(self, path, key):
        file = path.parent / MANIFEST
        file.write_text(json.dumps({**json.loads(file.read_text()), key: None}))
        with pytest.raises(ValueError, match=f"json': {key}: .*; got None"):
            read_manifest(path.parent)

    def test_without_a_manifest_nothing_is_added(self, path):
        (path.parent / MANIFEST).unlink()
        with pytest.raises(ValueError, match="manifest .*: expected JSON"):
            Folder(path.parent, {}).begin()
        with pytest.raises(ValueError, match="expected a folder; got a file"):
            Folder(path, {}).begin()

    def test_of_lengths(self):
        message = r"tensors of one length; got lengths \[2, 3\]"
        with pytest.raises(ValueError, match=message):
            Networks({}, {"weight": torch.ones(2)}, {"label": torch.ones(3)})
