import torch
from torch.nn.functional import cross_entropy

from tasks.learning.lesson import each_opinion


def test_every_head_is_to_say_what_its_network_is():
    said, targets = torch.randn(3, 2, 5), torch.tensor([4, 0, 2])
    apart = [cross_entropy(said[:, head], targets) for head in range(2)]
    found = cross_entropy(*each_opinion(said, targets))
    torch.testing.assert_close(found, sum(apart) / 2)


def test_one_opinion_stays_as_it_is():
    said, targets = torch.randn(3, 5), torch.tensor([4, 0, 2])
    rows, same = each_opinion(said, targets)
    assert torch.equal(rows, said) and torch.equal(same, targets)
