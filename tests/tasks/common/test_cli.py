from dataclasses import dataclass

import torch

from tasks.common import cli


@dataclass(frozen=True)
class Config:
    pass


def test_programs_have_one_thread(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])
    torch.set_num_threads(2)
    seen = []
    cli.main(Config, lambda _: seen.append(torch.get_num_threads()), None)
    assert seen == [1]
