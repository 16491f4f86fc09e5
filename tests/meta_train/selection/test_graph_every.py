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
    save_pretrained(
        LearnedOptimizer(metanet, recipe={"stages": []}), tmp_path / "start.safetensors"
    )
    folder = tmp_path / "every"
    config = graph_every.Config(
        weights=str(tmp_path / "start.safetensors"),
        problems=(TOY,),
        every=(1, 4),
        seeds=2,
        folder=str(folder),
    )
    graph_every.run(config)
    chosen = load_pretrained(folder / "chosen.safetensors")
    results = json.loads((folder / "results.json").read_text())
    assert chosen.metanet.graph_every == results["chosen"]
    assert chosen.recipe["stages"][-1]["program"] == "meta_train.selection.graph_every"
    assert [row["k"] for row in results["rows"]] == ["1", "4"]
    assert (folder / f"{file_name(TOY)}.png").stat().st_size > 0
    first = capsys.readouterr().out
    before = sum(
        len(path.read_text().splitlines()) for path in (folder / "records").iterdir()
    )
    graph_every.run(config)
    assert capsys.readouterr().out == first
    assert (
        sum(
            len(path.read_text().splitlines())
            for path in (folder / "records").iterdir()
        )
        == before
        == 4
    )


def test_one_must_be_among_the_values():
    with pytest.raises(
        ValueError, match=r"every: expected 1 among the values.*got \(2, 4\)"
    ):
        graph_every.Config(every=(2, 4))
