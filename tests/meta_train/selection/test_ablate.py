import json
from dataclasses import replace

from meta_train.selection import ablate
from ngopt.soap.config import SoapConfig
from tests.meta_train.small import TOY


def test_every_part_is_a_change_of_the_rule():
    for changes in ablate.PARTS.values():
        assert replace(SoapConfig(), **changes) != SoapConfig()


def test_worth_is_the_loss_without_the_part(tmp_path, monkeypatch, capsys):
    parts = {"steps": {"step_size": 1e-6}, "nothing": {}}
    monkeypatch.setattr(ablate, "PARTS", parts)
    ablate.run(ablate.Config(problems=(TOY,), seeds=2, folder=str(tmp_path)))
    worth = json.loads((tmp_path / "ablation.json").read_text())["worth"]
    assert worth["steps"][TOY] > 0
    assert worth["nothing"][TOY] == 0
    assert "| steps" in (tmp_path / "ablation.md").read_text()
    assert "steps" in capsys.readouterr().out
