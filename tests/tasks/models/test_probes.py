from math import log

import torch

from tasks.models.probes import answers, statistics


def test_outputs_say_themselves_and_what_a_classifier_answers():
    values = torch.tensor([[[0.0, log(3.0)], [1.0, 1.0]]])
    found = answers(values)
    expected = [
        [0.0, 1.0, log(1 / 4), log(1 / 2)],
        [log(3.0), 1.0, log(3 / 4), log(1 / 2)],
    ]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_one_output_has_nothing_beside_it():
    values = torch.randn(2, 3, 1)
    assert torch.equal(answers(values), statistics(values))


def test_neurons_in_space_say_mean_and_deviation():
    values = torch.tensor([1.0, 3.0, 0.0, 0.0]).view(1, 1, 2, 2)
    expected = [[2.0, 1.0], [0.0, 0.0]]
    assert statistics(values).tolist() == [expected]
