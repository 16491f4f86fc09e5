"""Facts about the formats and the sources, on tiny files written here: torchvision is
given a web server on this machine, and package clients are stand-ins on the PATH."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import socket
import struct
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from harness import dataset_sources as sources
from harness.dataset_sources import IDX_FILES


def idx(array: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
        + array.tobytes()
    )


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


def tar(path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def random_bytes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


TRAIN_IMAGES = random_bytes(0, 6, 28, 28)
TEST_IMAGES = random_bytes(1, 2, 28, 28)
TRAIN_LABELS = np.arange(6, dtype=np.uint8)
TEST_LABELS = np.array([9, 200], dtype=np.uint8)
IDX_CONTENTS = dict(
    zip(
        IDX_FILES,
        map(idx, (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)),
        strict=True,
    )
)


def assert_is_the_idx_data(arrays) -> None:
    assert {key: (value.shape, value.dtype) for key, value in arrays.items()} == {
        "train_images": ((6, 1, 28, 28), torch.uint8),
        "train_labels": ((6,), torch.int64),
        "test_images": ((2, 1, 28, 28), torch.uint8),
        "test_labels": ((2,), torch.int64),
    }
    assert np.array_equal(arrays["train_images"][:, 0], TRAIN_IMAGES)
    assert np.array_equal(arrays["test_images"][:, 0], TEST_IMAGES)
    assert arrays["train_labels"].tolist() == TRAIN_LABELS.tolist()
    assert arrays["test_labels"].tolist() == TEST_LABELS.tolist()


# --- Formats ---


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_of_the_four_files_becomes_the_four_arrays(pack):
    packed = {name: pack(content) for name, content in IDX_CONTENTS.items()}
    assert_is_the_idx_data(sources.arrays_from_idx(packed))


@pytest.mark.parametrize("content", [b"", b"<html>", idx(TRAIN_IMAGES)[:-1]])
def test_other_contents_are_errors(content):
    damaged = {**IDX_CONTENTS, IDX_FILES[0]: content}
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        sources.arrays_from_idx(damaged)


def test_rows_of_a_png_become_images():
    images = random_bytes(3, 4, 2, 5, 3)  # (n, height, width, channels)
    parsed = sources.parse_image_rows(png(images.reshape(4, 10, 3)), 2, 5)
    assert np.array_equal(parsed, images.transpose(0, 3, 1, 2))
    assert parsed.is_contiguous()


@pytest.mark.parametrize("pixels", [random_bytes(0, 4, 11, 3), random_bytes(0, 4, 10)])
def test_pngs_of_another_form_are_errors(pixels):
    with pytest.raises(
        ValueError,
        match=r"expected RGB rows of 10 pixels; got (RGB|L) rows of 1",
    ):
        sources.parse_image_rows(png(pixels), 2, 5)


# one for each training batch, and one of test
CIFAR10_IMAGES = random_bytes(4, 6, 32, 32, 3)


def assert_is_the_cifar10_data(arrays) -> None:
    images = torch.from_numpy(CIFAR10_IMAGES).permute(0, 3, 1, 2)
    assert torch.equal(arrays["train_images"], images[:5])
    assert torch.equal(arrays["test_images"], images[5:])
    assert arrays["train_labels"].tolist() == [6, 9, 9, 4, 1]
    assert arrays["test_labels"].tolist() == [3]
    assert all(value.is_contiguous() for value in arrays.values())
    assert {value.dtype for value in arrays.values()} == {
        torch.uint8,
        torch.int64,
    }


def png_contents() -> dict[str, bytes]:
    rows = [png(image.reshape(1, 1024, 3)) for image in CIFAR10_IMAGES]
    names = [
        *(f"data_batch_{number}.png" for number in range(1, 6)),
        "test_batch.png",
    ]
    return dict(zip(names, rows, strict=True)) | {
        "train_lables.json": b"[6,9,9,4,1]",
        "test_lables.json": b"[3]",
    }


def test_pngs_in_the_order_of_their_numbers_become_the_four_arrays():
    assert_is_the_cifar10_data(sources.arrays_from_image_rows(png_contents()))


# --- torchvision, with its hosts replaced by a server on this machine ---


@contextlib.contextmanager
def serve(handler):
    """Runs a web server; gives its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(tmp_path):
    """Serves a folder; (the folder, its address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with serve(functools.partial(Handler, directory=folder)) as address:
        yield folder, address


@pytest.mark.parametrize("class_name", ["MNIST", "FashionMNIST"])
def test_torchvision_idx(server, tmp_path, monkeypatch, class_name):
    folder, address = server
    resources = []
    for name, content in IDX_CONTENTS.items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    dataset_class = getattr(torchvision.datasets, class_name)
    monkeypatch.setattr(dataset_class, "mirrors", [address])
    monkeypatch.setattr(dataset_class, "resources", resources)
    assert_is_the_idx_data(
        sources.from_torchvision(tmp_path / "place", class_name=class_name)
    )


def test_torchvision_cifar10(server, tmp_path, monkeypatch):
    folder, address = server
    planes = CIFAR10_IMAGES.transpose(0, 3, 1, 2).reshape(6, 1, 3072)
    members, md5 = {}, {}
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, plane, label in zip(names, planes, [6, 9, 9, 4, 1, 3], strict=True):
        members[name] = pickle.dumps({"data": plane, "labels": [label]})
    members["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    for name, content in members.items():
        md5[name] = hashlib.md5(content).hexdigest()
    archive = tar(
        folder / "cifar.tar.gz",
        {f"cifar-10-batches-py/{k}": v for k, v in members.items()},
    )
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"{address}cifar.tar.gz")
    monkeypatch.setattr(kind, "filename", "cifar.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [[names[5], md5[names[5]]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5["batches.meta"]})
    arrays = sources.from_torchvision(tmp_path / "place", class_name="CIFAR10")
    assert_is_the_cifar10_data(arrays)


def test_a_download_that_stalls_is_stopped(monkeypatch, tmp_path):
    over = threading.Event()

    class AnswersButNeverSends(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            over.wait(10)

        def log_message(self, *_):
            pass

    with serve(AnswersButNeverSends) as address:
        monkeypatch.setattr(
            torchvision.datasets.CIFAR10, "url", f"{address}cifar.tar.gz"
        )
        monkeypatch.setattr(sources, "STALL_SECONDS", 0.3)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            sources.from_torchvision(tmp_path, class_name="CIFAR10")
        assert time.monotonic() - start < 5
        over.set()
    assert socket.getdefaulttimeout() is None
