import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from harness.distributed import RankLost
from meta_train.training import train
from tests.graph_checks import assert_equal
from tests.meta_train.training.test_train import TOY, config


class TestRanks:
    """Meta-training in two processes."""

    @pytest.mark.parametrize(
        "estimator", ["tbptt", pytest.param("pes", marks=pytest.mark.thorough)]
    )
    def test_any_number_of_ranks_gives_the_same_weights_and_resumes(
        self, tmp_path, estimator, forked
    ):
        settings = {"estimator": estimator, "optimizees": 3, "validation_seeds": 2}
        names = {"one": (1, 1), "two then one": (2, 1), "one then two": (1, 2)}
        for name, counts in names.items():
            for steps, processes in zip((2, 4), counts, strict=True):
                sizes = {"outer_steps": steps, "processes": processes}
                train.run(config(tmp_path / name, **settings, **sizes))
        expected = weights_of(tmp_path / "one")
        for name in names:
            assert_equal(weights_of(tmp_path / name), expected)
        assert len({(tmp_path / name / "log.jsonl").read_text() for name in names}) == 1

    @pytest.mark.thorough
    def test_torchrun(self, tmp_path):
        options = (
            "--outer-steps 2 --optimizees 2 --horizon 12 --truncation 3 --warmup 2"
        )
        arguments = ["--problems", TOY, *options.split(), "--validate-every", "2"]
        torchrun = "-m torch.distributed.run --nproc-per-node 2 -m".split()
        program = [sys.executable, *torchrun, "meta_train.training.train"]
        folder = ["--folder", str(tmp_path / "two")]
        subprocess.run([*program, *folder, *arguments], check=True)
        train.run(config(tmp_path / "one", outer_steps=2))
        assert_equal(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))

    def test_a_rank_that_dies_ends_the_run_with_a_message(self, tmp_path, forked):
        problems = ("tests.meta_train.closed_form:Deadly",)
        settings = config(tmp_path, problems=problems, processes=2, outer_steps=50)
        # The launcher names the dead rank, or one that has already missed it.
        reason = "(?:exit code|RankLost: another rank has ended)"
        message = rf"rank \d ended with {reason}.* stands at outer step (\d+); the same"
        with pytest.raises(RankLost, match=message) as found:
            train.run(settings)
        checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
        stands = checkpoint["outer_step"]
        assert re.search(message, str(found.value))[1] == str(stands)
        assert 2 <= stands <= 12  # the first rank may have been writing its newest

    def test_an_error_of_a_rank_is_in_the_message(self, tmp_path, forked):
        settings = config(tmp_path, outer_steps=2)
        train.run(settings)
        message = r"rank \d ended with ValueError: checkpoint .* lr 0.001, got 0.5"
        with pytest.raises(RankLost, match=message):
            train.run(replace(settings, lr=0.5, processes=2))


def weights_of(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=False)["metanet"]
    return list(state.values())
