from dataclasses import dataclass

import pytest
import torch

from harness import cli
from harness.interrupts import Interrupted


@dataclass(frozen=True)
class Config:
    pass


def test_programs_have_one_thread(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])
    torch.set_num_threads(2)
    seen = []
    cli.main(Config, lambda _: seen.append(torch.get_num_threads()), None)
    assert seen == [1]


@pytest.mark.parametrize(
    "error, told",
    [
        (Interrupted("checkpoint 'a' stands"), "interrupted: checkpoint 'a' stands"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_ctrl_c_ends_a_program_with_status_130_and_a_line(
    monkeypatch, capsys, error, told
):
    def run(config):
        raise error

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        cli.main(Config, run, None)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"\n{told}\n"
