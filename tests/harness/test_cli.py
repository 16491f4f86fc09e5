from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import cli
from harness.errors import Interrupted
from harness.settings import check_counts


@dataclass(frozen=True)
class Config:
    pass


def test_programs_have_one_thread(monkeypatch):
    torch.set_num_threads(2)
    threads = []
    run(monkeypatch, lambda: threads.append(torch.get_num_threads()))
    assert threads == [1]


def run(monkeypatch, function):
    """A program in which a function is called, without arguments."""
    monkeypatch.setattr("sys.argv", ["program"])
    cli.main(Config, lambda _: function(), None)


@pytest.mark.parametrize(
    "error, message",
    [
        (Interrupted("checkpoint 'a' stands"), "interrupted: checkpoint 'a' stands"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_ctrl_c_ends_a_program_with_status_130_and_a_line(
    monkeypatch, capsys, error, message
):
    def stopped():
        raise error

    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, stopped)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"\n{message}\n"


def test_an_error_of_ours_is_one_line(monkeypatch, capsys):
    # without a frame of this file, which is like one of the user
    monkeypatch.setattr("harness.cli._FOLDERS", (Path(__file__).parents[2],))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, lambda: check_counts(SimpleNamespace(steps=0), "steps"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: steps: expected 1 or more; got 0\n"


def test_an_error_in_code_of_the_user_keeps_its_traceback(monkeypatch):
    with pytest.raises(ValueError, match="Overflow"):
        run(monkeypatch, lambda: torch.manual_seed(2**70))
