"""Training runs in float64, graphs and roles against the records beside this file.

`python -m tests.golden --write-records` writes new ones, for a change of the rule.
"""

import json

import numpy as np
import pytest

from tests.golden import structures, trajectories
from tests.golden.records import PATH, numbers_of, recorded_cases

RECORDS = json.loads(PATH.read_text())
CASES = {case.name: case for case in recorded_cases()}


def test_every_case_has_a_record():
    assert RECORDS["runs"].keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_training_run(name):
    numbers = numbers_of(trajectories.snapshots(CASES[name]))
    recorded = RECORDS["runs"][name]
    assert numbers.keys() == recorded.keys()
    for parameter, values in numbers.items():
        np.testing.assert_allclose(
            values, recorded[parameter], rtol=1e-6, atol=1e-8, err_msg=parameter
        )


def test_graphs_and_roles():
    hashes = {name: list(parts.values()) for name, parts in structures.graphs()}
    assert hashes == RECORDS["graphs"]
