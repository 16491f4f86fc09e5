"""Loading, storing and batching, on a data set of 24 + 5 tiny images without network;
and the three real data sets where a source of them answers."""

import os
import threading
from itertools import product

import pytest
import safetensors.torch
import torch
from torchvision import transforms

from harness import image_datasets as datasets
from harness.image_datasets import (
    DATASETS,
    DatasetUnavailable,
    Recipe,
    batch_indices,
    load_dataset,
    sha256_of,
)


def tiny_arrays(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def images(n):
        return torch.randint(256, (n, 3, 4, 5), generator=generator, dtype=torch.uint8)

    return {
        "train_images": images(24),
        "train_labels": torch.arange(24),
        "test_images": images(5),
        "test_labels": torch.arange(100, 105),
    }


def install(monkeypatch, **fetchers):
    """Register a data set 'tiny' that expects `tiny_arrays()` and has the given
    sources."""
    digest = sha256_of(tiny_arrays())
    recipe = Recipe((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), sha256=digest, sources=fetchers)
    monkeypatch.setitem(DATASETS, "tiny", recipe)


@pytest.fixture
def fetched(monkeypatch):
    """Installs 'tiny' with one good source; a list of the places of its downloads."""
    places = []

    def fetch(place):
        places.append(place)
        return tiny_arrays()

    install(monkeypatch, good=fetch)
    return places


# --- Splits and batches ---


def test_last_twelfth_of_the_training_file_is_validation(fetched, tmp_path):
    data = load_dataset("tiny", tmp_path)
    arrays = tiny_arrays()
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 5)
    assert data.train.labels.tolist() == list(range(22))
    assert data.validation.labels.tolist() == [22, 23]
    assert data.test.labels.tolist() == list(range(100, 105))
    assert torch.equal(data.train.images, arrays["train_images"][:22])
    assert torch.equal(data.validation.images, arrays["train_images"][22:])
    assert torch.equal(data.test.images, arrays["test_images"])


def test_batch_agrees_with_torchvision_bit_for_bit(fetched, tmp_path):
    split = load_dataset("tiny", tmp_path).train
    indices = torch.tensor([3, 0, 21, 3])
    images, labels = split.batch(indices)
    normalize = transforms.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    oracle = transforms.Compose([transforms.ToTensor(), normalize])
    expected = [oracle(split.images[i].permute(1, 2, 0).numpy()) for i in indices]
    assert torch.equal(images, torch.stack(expected))
    assert torch.equal(labels, indices)
    # the stored images do not change
    assert torch.equal(split.images, tiny_arrays()["train_images"][:22])


def test_batches_with_a_leading_axis_are_stacked(fetched, tmp_path):
    split = load_dataset("tiny", tmp_path).train
    indices = torch.tensor([[1, 2, 3], [4, 5, 6]])
    images, labels = split.batch(indices)
    assert images.shape == (2, 3, 3, 4, 5)
    assert torch.equal(images[1], split.batch(indices[1])[0])
    assert torch.equal(labels, indices)


# --- Indices ---


def epoch_of(seed: int, epoch: int) -> torch.Tensor:
    """Of ten batches of 100."""
    steps = range(10 * epoch, 10 * (epoch + 1))
    return torch.cat([batch_indices(1000, 100, seed=seed, step=step) for step in steps])


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_visits_every_index_once(epoch):
    assert torch.equal(epoch_of(3, epoch).sort().values, torch.arange(1000))


def test_incomplete_batch_is_dropped():
    # 10 = 2 batches of 4 and 2 left over: step 2 begins a new epoch.
    batches = [batch_indices(10, 4, seed=0, step=step) for step in range(4)]
    first, second = torch.cat(batches[:2]), torch.cat(batches[2:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 8
    assert first.tolist() != second.tolist()


def test_indices_depend_on_the_arguments_alone():
    arguments = [
        (55_000, 128, seed, step) for seed in (0, 5) for step in (0, 1, 428, 429, 3000)
    ]

    def draw(size, batch_size, seed, step):
        return batch_indices(size, batch_size, seed=seed, step=step)

    first = [draw(*a) for a in arguments]
    datasets._epoch_order.cache_clear()
    torch.manual_seed(1)
    again = [draw(*a) for a in reversed(arguments)][::-1]
    assert all(map(torch.equal, first, again))
    assert first[0].dtype == torch.int64 and first[0].shape == (128,)


def test_changed_indices_do_not_change_later_ones():
    before = batch_indices(100, 10, seed=0, step=0).tolist()
    batch_indices(100, 10, seed=0, step=0).zero_()
    assert batch_indices(100, 10, seed=0, step=0).tolist() == before


def test_neighbouring_seeds_and_epochs_are_independent():
    pairs = product(range(10), range(10))
    orders = torch.stack([epoch_of(*seed_and_epoch) for seed_and_epoch in pairs])
    correlations = torch.corrcoef(orders.double()).fill_diagonal_(0)
    # Independent permutations of 1,000: standard deviation .032, largest of 4,950 about
    # .13.
    assert correlations.abs().max() < 0.2
    assert correlations[correlations != 0].std() == pytest.approx(0.032, abs=0.003)


def test_int64_seeds_have_different_orders():
    seeds = [0, 1, -1, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]
    pairs = product(seeds, (0, 1))
    orders = {tuple(epoch_of(*seed_and_epoch).tolist()) for seed_and_epoch in pairs}
    assert len(orders) == 2 * len(seeds)


@pytest.mark.parametrize("batch_size, step", [(0, 0), (11, 0), (-1, 0), (5, -1)])
def test_impossible_batches_are_errors(batch_size, step):
    with pytest.raises(ValueError, match=f"got {min(step, 0) or batch_size}"):
        batch_indices(10, batch_size, seed=0, step=step)


# --- The stored file ---


def test_second_load_reads_the_file(fetched, tmp_path):
    first = load_dataset("tiny", tmp_path)
    second = load_dataset("tiny", tmp_path)
    assert len(fetched) == 1
    assert torch.equal(first.train.images, second.train.images)
    assert os.listdir(tmp_path) == ["tiny.safetensors"]


def test_folder_is_made_and_comes_from_the_environment_or_is_data(
    fetched, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    load_dataset("tiny", "some/where")
    assert fetched[0].is_absolute()  # clients are run in folders of their own
    monkeypatch.setenv("NGOPT_DATA", str(tmp_path / "elsewhere"))
    load_dataset("tiny")
    monkeypatch.delenv("NGOPT_DATA")
    load_dataset("tiny")
    for folder in ("some/where", "elsewhere", "data"):
        assert (tmp_path / folder / "tiny.safetensors").is_file()


def stored(change=lambda arrays: None) -> bytes:
    """The stored file of the arrays after a change."""
    arrays = tiny_arrays()
    change(arrays)
    return safetensors.torch.save(arrays)


@pytest.mark.parametrize(
    "content",
    [
        stored()[:0],
        stored()[:100],
        stored()[:-1],
        stored(lambda arrays: arrays["test_images"][0, 0, 0, 0].bitwise_xor_(1)),
        stored(lambda arrays: arrays["train_labels"][-1].add_(1)),
        stored(lambda arrays: arrays.pop("test_labels")),
        stored(lambda arrays: arrays.update(more=torch.zeros(1))),
    ],
    ids=["empty", "header", "cut", "one pixel", "one label", "missing", "extra"],
)
def test_a_damaged_file_is_downloaded_again(fetched, tmp_path, content):
    file = tmp_path / "tiny.safetensors"
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"tiny\.safetensors' is damaged"):
        data = load_dataset("tiny", tmp_path)
    assert len(fetched) == 1
    assert torch.equal(data.train.labels, tiny_arrays()["train_labels"][:22])
    assert torch.equal(data.test.images, tiny_arrays()["test_images"])
    assert file.read_bytes() == stored()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_download_leaves_no_file(fetched, tmp_path, monkeypatch, moment):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_dataset("tiny", tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(load_dataset("tiny", tmp_path).train) == 22


def test_two_downloads_at_once_both_succeed(monkeypatch, tmp_path):
    together = threading.Barrier(2, timeout=10)

    def fetch(place):
        (place / "download").write_text("busy")
        together.wait()
        return tiny_arrays()

    install(monkeypatch, good=fetch)
    loaded = []

    def load():
        loaded.append(load_dataset("tiny", tmp_path))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 2
    assert os.listdir(tmp_path) == ["tiny.safetensors"]
    load_dataset("tiny", tmp_path)  # would warn, hence fail, if the file were damaged


# --- Sources ---


def unreachable(place):
    raise ConnectionError("no route to host")


def test_sources_are_tried_in_order(monkeypatch, tmp_path):
    places = []

    def wrong(place):
        places.append(place)
        return tiny_arrays(seed=1)

    def good(place):
        places.append(place)
        assert list(place.iterdir()) == []
        return tiny_arrays()

    install(monkeypatch, unreachable=unreachable, wrong=wrong, good=good, never=None)
    data = load_dataset("tiny", tmp_path)
    assert [place.name for place in places] == ["wrong", "good"]
    assert torch.equal(data.test.images, tiny_arrays()["test_images"])


def test_sources_and_their_errors_are_listed_when_all_fail(monkeypatch, tmp_path):
    def wrong(place):
        return tiny_arrays() | {"test_labels": torch.zeros(5, dtype=torch.int64)}

    install(monkeypatch, host=unreachable, mirror=wrong)
    with pytest.raises(DatasetUnavailable) as caught:
        load_dataset("tiny", tmp_path)
    lines = str(caught.value).splitlines()
    assert "'tiny'" in lines[0]
    assert lines[1] == "  host: no route to host"
    assert lines[2].startswith("  mirror: expected arrays with SHA-256")
    assert isinstance(caught.value, RuntimeError)
    assert os.listdir(tmp_path) == []


def test_a_read_only_folder_is_an_error_before_any_download(fetched, tmp_path):
    # below a regular file not even root can write
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    with pytest.raises(ValueError, match=f"data folder '{folder}'.*writable folder"):
        load_dataset("tiny", folder)
    assert fetched == []


def test_unknown_name_lists_the_known_ones(tmp_path):
    message = r"'imagenet'.*'fashion-mnist', 'mnist', 'cifar10'"
    with pytest.raises(ValueError, match=message):
        load_dataset("imagenet", tmp_path)


# --- The real data sets, against published facts that are independent of our hashes ---

FACTS = {  # shape, pixel mean, images per class, first labels
    "fashion-mnist": ((1, 28, 28), (0.2860,), [6000] * 10, [9, 0, 0, 3, 0, 2, 7, 2]),
    "mnist": (
        (1, 28, 28), (0.1307,),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [5, 0, 4, 1, 9, 2, 1, 3],
    ),
    "cifar10": (
        (3, 32, 32), (0.49140, 0.48216, 0.44653), [5000] * 10, [6, 9, 9, 4, 1, 1, 2, 7],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_real_data_set_has_the_published_facts(name):
    try:
        data = load_dataset(name)
    except DatasetUnavailable as error:
        pytest.skip(str(error))
    shape, mean, counts, first_labels = FACTS[name]
    images = torch.cat([data.train.images, data.validation.images])
    labels = torch.cat([data.train.labels, data.validation.labels])
    assert images.shape == (sum(counts), *shape) and images.dtype == torch.uint8
    assert len(data.test) == 10_000
    assert len(data.validation) == sum(counts) // 12
    pixel_mean = images.sum((0, 2, 3)) / (255 * images[:, 0].numel())
    assert pixel_mean.tolist() == pytest.approx(mean, abs=5e-5)
    assert labels.bincount().tolist() == counts
    assert labels[:8].tolist() == first_labels
