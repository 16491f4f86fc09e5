"""Roles and matrices of networks that were labelled by hand: see `labelled`."""

import pytest

from tests.ngopt.roles.labelled.check import mistakes
from tests.ngopt.roles.labelled.expand import LABELS, elements_of
from tests.selection import quick_first

NAMES = sorted(path.stem for path in LABELS.glob("*.json"))
QUICK = (
    "gpt2",
    "gpt_neox",
    "falcon_grouped",
    "llama_w13_interleaved",
    "q_gate_kv",
    "mla_wkv_b",
    "torchtitan_experts",
    "lstm_projected",
    "torch_transformer",
    "gat",
)
WRONG_BY_HEAD = {"recurrent_gemma": 3456}
"""Elements that are known to be wrong: heads that are only known behind a loop over
time."""


@pytest.mark.parametrize("name", quick_first(NAMES, QUICK))
def test_roles_and_matrices_are_those_of_the_labels(name):
    try:
        result = mistakes(name)
    except ImportError as error:
        pytest.skip(f"{name} needs {error.name}")
    assert result.wrong == 0, "\n".join(result.lines)
    assert result.wrong_heads == WRONG_BY_HEAD.get(name, 0), "\n".join(result.lines)


def test_there_are_labels_of_forty_networks_and_they_are_small():
    assert len(NAMES) >= 40
    assert sum(path.stat().st_size for path in LABELS.glob("*.json")) < 500_000


def test_labels_of_interleaved_heads():
    # (head part size) in: rows 0, 1 are q of head 0, rows 2, 3 its k, rows 4, 5 q
    entry = {
        "axes": "(head part size) in",
        "sizes": {"head": 2, "part": 2},
        "apart": ["part"],
        "heads": ["head"],
    }
    label = {"role": "matrix", "matrices": [entry]}
    whole = [x[:, 0].tolist() for x in elements_of(label, (8, 1), heads_apart=False)]
    assert whole == [[0, 1, 4, 5], [2, 3, 6, 7]]
    by_head = [x[:, 0].tolist() for x in elements_of(label, (8, 1), heads_apart=True)]
    assert by_head == [[0, 1], [4, 5], [2, 3], [6, 7]]
