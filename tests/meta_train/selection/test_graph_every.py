import json

import pytest
import torch

from meta_train.comparison.runs import file_name
from meta_train.selection import graph_every
from ngopt.metanets import NeuralGraphGNN
from ngopt.metanets.gnn import GNNConfig
from ngopt.pretrained import load_pretrained, save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.small import TOY


def records(*accuracies):
    return [{"validation": {"accuracy": a / 100}} for a in accuracies]


@pytest.mark.parametrize(
    ("by_k", "expected"),
    [
        ({1: records(80, 82), 2: records(80, 80), 4: records(79, 79)}, 2),
        ({1: records(80, 82), 2: records(60, 60), 4: records(81, 81)}, 4),
        ({1: records(80), 8: records(79)}, 1),
    ],
)
def test_chosen_is_the_largest_k_within_one_standard_error(by_k, expected):
    assert graph_every.choose_k(by_k) == expected


def test_writes_table_picture_and_weights_and_resumes(tmp_path, capsys):
    torch.manual_seed(0)
    metanet = NeuralGraphGNN(GNNConfig(width=4, hidden=(4,)))
    weights, folder = tmp_path / "start.safetensors", tmp_path / "every"
    save_pretrained(LearnedOptimizer(metanet, recipe={"stages": []}), weights)
    sizes = {"problems": (TOY,), "every": (1, 4), "seeds": 2}
    config = graph_every.Config(weights=str(weights), folder=str(folder), **sizes)
    graph_every.run(config)
    chosen = load_pretrained(folder / "chosen.safetensors")
    results = json.loads((folder / "results.json").read_text())
    assert chosen.metanet.graph_every == results["chosen"]
    assert chosen.recipe["stages"][-1]["program"] == "meta_train.selection.graph_every"
    assert [row["k"] for row in results["rows"]] == ["1", "4"]
    assert (folder / f"{file_name(TOY)}.png").stat().st_size > 0
    first = capsys.readouterr().out

    def records():
        return "".join(path.read_text() for path in (folder / "records").iterdir())

    before = records()
    assert before.count("\n") == 4
    graph_every.run(config)
    assert capsys.readouterr().out == first
    assert records() == before


def test_one_must_be_among_the_values():
    message = r"every: expected 1 among the values.*got \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        graph_every.Config(every=(2, 4))
