from collections import Counter

import torch

from harness.files import read_lines
from meta_train.step_size.collect import Config, main
from meta_train.step_size.trainings import FAMILIES, draw


def test_a_seed_gives_one_training():
    first, again = draw(7), draw(7)
    assert first == again
    assert torch.equal(first.task.inputs, again.task.inputs)
    assert torch.equal(first.indices(0, 3), again.indices(0, 3))
    pairs = zip(first.build(1).parameters(), again.build(1).parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_every_family_is_drawn_and_runs():
    families = Counter()
    for seed in range(150):
        if len(families) == len(FAMILIES):
            break
        training = draw(seed)
        families[training.family] += 1
        if families[training.family] == 1:
            task, model = training.task, training.build(0)
            chosen = training.indices(0, 0)
            loss = task.loss(model(task.inputs[chosen]), task.targets[chosen])
            loss.backward()
            assert loss.isfinite()
    assert set(families) == set(FAMILIES)


def test_collecting_resumes(tmp_path, capsys):
    main(Config(first=16, count=1, folder=str(tmp_path)))
    path = tmp_path / "outcomes.jsonl"
    first = path.read_text()
    main(Config(first=16, count=1, folder=str(tmp_path)))
    assert path.read_text() == first
    assert capsys.readouterr().out.count(f"trainings are in '{path}'") == 2
    main(Config(first=16, count=2, folder=str(tmp_path), least_steps=10**4))
    (record,) = read_lines([path])
    assert record["kind"] == draw(16).kind
    assert len(record["validation"]) == len(record["variants"])
