"""The examples, as users start them, in one and two processes (gloo, CPU)."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import pytest

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"(?:step|epoch) +(\d+).* validation ([\d.]+)")
# rounding in float32, which grows with every step
CLOSE = {"abs": 0.003}
# what torchrun tells a single process
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
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    launcher.append(str(processes))
    if processes == 1:  # without a launcher, which imports torch, too
        launcher = []
        environment |= ALONE
    script = ROOT / "examples" / name
    found = subprocess.run(
        [sys.executable, *launcher, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return {int(step): float(loss) for step, loss in LINE.findall(found.stdout)}


@pytest.mark.slow
def test_fsdp2_gpt(tmp_path):
    """One process gives the losses of two, and so does a resumed training.

    It resumes with tensor parallelism, recomputation and accumulated gradients.
    """
    name = "fsdp2_gpt.py"
    size = "--steps", 6, "--width", 32, "--blocks", 2, "--context", 64
    every = "--report-every", 1, "--save-every", 3, "--folder", tmp_path / "two"
    expected = losses(name, 2, *size, *every)
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    # untrained: 5.5, the logarithm of 256
    assert expected[6] < 3.3
    single = losses(name, 1, *size, "--report-every", 1)
    assert single == pytest.approx(expected, **CLOSE)
    rmtree(tmp_path / "two" / "step-000006")
    options = "--tensor-parallel", 2, "--recompute", "--accumulate", 2
    resumed = losses(name, 2, *size, *every, *options)
    assert resumed == pytest.approx({k: expected[k] for k in (4, 5, 6)}, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "first", "checkpoint"),
    [("lightning", 0, "epoch=0.ckpt"), ("accelerate", 1, "epoch-1")],
)
def test_trainers(tmp_path, package, first, checkpoint):
    """One process gives the losses of two, and so does a resumed training."""
    pytest.importorskip(package)
    name = f"{package}_fsdp2.py"
    settings = "--epochs", 2, "--folder"
    expected = losses(name, 2, *settings, tmp_path / "two")
    assert list(expected) == [first, first + 1]
    # untrained: 1.4, the logarithm of 4
    assert expected[first + 1] < 0.5
    single = losses(name, 1, *settings, tmp_path / "one")
    assert single == pytest.approx(expected, **CLOSE)
    begun = "--resume", tmp_path / "two" / checkpoint
    resumed = losses(name, 2, *settings, tmp_path / "resumed", *begun)
    assert resumed == pytest.approx({first + 1: expected[first + 1]}, **CLOSE)
