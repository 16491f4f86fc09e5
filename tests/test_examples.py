"""The examples, as users start them, in one and two processes (gloo, CPU)."""

import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"(?:step|epoch) +(\d+).* validation ([\d.]+)")
# rounding in float32, which grows with every step
CLOSE = {"abs": 0.003}
# the environment that torchrun sets for a single process
ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "0",
}


def losses(name: str, processes: int, *arguments: object) -> dict[int, float]:
    """Validation losses that an example prints, by step or epoch."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = "1"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    launcher.append(str(processes))
    if processes == 1:  # without a launcher, which imports torch, too
        launcher = []
        environment |= ALONE
    command = [
        sys.executable,
        *launcher,
        ROOT / "examples" / name,
        *map(str, arguments),
    ]
    options = {"capture_output": True, "text": True, "timeout": 300}
    process = subprocess.run(command, env=environment, **options)
    assert process.returncode == 0, process.stderr
    return losses_in(process.stdout)


def losses_in(text: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in LINE.findall(text)}


def losses_of_forked(name: str, processes: int, *arguments: object) -> dict[int, float]:
    """As `losses`, but the processes need not import torch, which takes longest."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=name,
        start_method="forkserver",
    )
    launch = elastic_launch(config, printed)
    texts = launch(name, *map(str, arguments))
    return losses_in(texts[0])


def printed(name: str, *arguments: str) -> str:
    """What an example prints in this process."""
    torch.set_num_threads(1)
    script = str(ROOT / "examples" / name)
    sys.argv = [script, *arguments]
    with redirect_stdout(StringIO()) as text:
        runpy.run_path(script, run_name="__main__")
    return text.getvalue()


@pytest.mark.slow
def test_fsdp2_gpt(tmp_path, forkserver):
    """Losses of one process, of two, and of a resumed run are equal.

    The run resumes with tensor parallelism, recomputation and accumulated gradients.
    Only the first run is started by torchrun, whose processes import everything anew.
    """
    name = "fsdp2_gpt.py"
    size = "--steps", 6, "--width", 32, "--blocks", 2, "--context", 64
    every = "--report-every", 1, "--save-every", 3, "--folder", tmp_path / "two"
    expected = losses(name, 2, *size, *every)
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    # untrained: 5.5, the logarithm of 256
    assert expected[6] < 3.3
    single = losses_of_forked(name, 1, *size, "--report-every", 1)
    assert single == pytest.approx(expected, **CLOSE)
    rmtree(tmp_path / "two" / "step-000006")
    options = "--tensor-parallel", 2, "--recompute", "--accumulate", 2
    resumed = losses_of_forked(name, 2, *size, *every, *options)
    assert resumed == pytest.approx({k: expected[k] for k in (4, 5, 6)}, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "first", "checkpoint"),
    [("lightning", 0, "epoch=0.ckpt"), ("accelerate", 1, "epoch-1")],
)
def test_trainers(tmp_path, forkserver, package, first, checkpoint):
    """Losses of one process, of two, and of a resumed run are equal."""
    pytest.importorskip(package)
    name = f"{package}_fsdp2.py"
    settings = "--epochs", 2, "--folder"
    expected = losses(name, 2, *settings, tmp_path / "two")
    assert list(expected) == [first, first + 1]
    # untrained: 1.4, the logarithm of 4
    assert expected[first + 1] < 0.5
    single = losses_of_forked(name, 1, *settings, tmp_path / "one")
    assert single == pytest.approx(expected, **CLOSE)
    begun = "--resume", tmp_path / "two" / checkpoint
    resumed = losses_of_forked(name, 2, *settings, tmp_path / "resumed", *begun)
    assert resumed == pytest.approx({first + 1: expected[first + 1]}, **CLOSE)
