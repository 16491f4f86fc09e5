import pytest
import torch

from tasks.networks.network_dataset import NetworkDataset
from tests.tasks.stacks import siren_networks


def networks(*widths, count, first):
    """Networks with numbers from `first` on."""
    return siren_networks(*widths, count=count, number=first + torch.arange(count))


@pytest.fixture
def collection():
    """Three of one architecture, of which one comes late, and two of another."""
    groups = [networks(2, 3, 1, count=2, first=0), networks(2, 4, 1, count=2, first=3)]
    return NetworkDataset.from_groups([*groups, networks(2, 3, 1, count=1, first=2)])


def test_networks_of_one_architecture_are_merged(collection):
    assert [stack.count for stack in collection.stacks] == [3, 2]
    assert collection.columns["number"].tolist() == [0, 1, 2, 3, 4]
    assert len(collection) == 5


def test_outputs_are_in_the_order_of_the_index(collection):
    index = torch.tensor([4, 0, 3, 2])

    def model(stacks):
        return torch.cat([stack.params[0].flatten(1).sum(1) for stack in stacks])

    every = model(collection.stacks)
    assert torch.equal(collection.apply(model, index), every[index])


def test_an_epoch_has_every_network_once_and_the_next_another_order():
    groups = [networks(2, n, 1, count=4, first=0) for n in range(1, 7)]
    collection = NetworkDataset.from_groups(groups)
    batches = [collection.batch_indices(8, seed=3, step=step) for step in range(6)]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24))
    assert not torch.equal(first, second)
    for batch in batches:
        assert len(collection.stack_numbers[batch].unique()) == 2
    assert torch.equal(collection.batch_indices(8, seed=3, step=1), batches[1])
    with pytest.raises(ValueError, match="batch: expected 1 to 24 networks; got 25"):
        collection.batch_indices(25, seed=0, step=0)


def test_a_filter_keeps_stacks(collection):
    kept = collection.filter(lambda stack: stack.count == 2)
    assert kept.columns["number"].tolist() == [3, 4]
    assert len(kept) == 2


def test_a_subset_has_all_architectures():
    groups = [networks(2, n, 1, count=4, first=10 * n) for n in (3, 4)]
    collection = NetworkDataset.from_groups(groups)
    kept = collection.subset(4)
    assert [stack.count for stack in kept.stacks] == [2, 2]
    assert kept.columns["number"].tolist() == [30, 32, 40, 42]
    assert torch.equal(kept.stacks[1].params[0], collection.stacks[1].params[0][[0, 2]])
    assert collection.subset(9) is collection
    assert collection.subset(None) is collection


def test_no_long_stretch_of_an_epoch_is_of_one_architecture():
    groups = [networks(2, n, 1, count=160, first=0) for n in (3, 4)]
    collection = NetworkDataset.from_groups(groups)
    batches = [collection.batch_indices(16, seed=0, step=step) for step in range(20)]
    assert sorted(torch.cat(batches).tolist()) == list(range(320))
    for k in range(0, 20, 5):
        stretch = torch.cat(batches[k : k + 5])
        assert len(collection.stack_numbers[stretch].unique()) == 2
