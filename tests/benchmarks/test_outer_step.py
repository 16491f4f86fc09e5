import json

import pytest

pytest.importorskip("torchvision")

from benchmarks import outer_step

LINE = "tests.benchmarks.test_step:line"
# linear maps 4 -> 3 -> 1 of a batch of 2, forward and by weights, and once by what is
# between
LINE_FLOPS = 2 * 2 * (2 * (4 * 3 + 3) + 3)


@pytest.mark.filterwarnings("ignore")
def test_shares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        outer_step.floor, "measured", lambda: outer_step.floor.Machine(1e3, 1)
    )
    output = tmp_path / "new" / "outer_step.json"
    options = ["--problems", LINE, "--weights", "ff", "--truncation", "4"]
    outer_step.main([*options, "--repeats", "2", "--output", str(output)])
    (record,) = json.loads(output.read_text())["records"]
    assert record["ms"] == pytest.approx(record["gradient_ms"] + record["metanet_ms"])
    # 5 gradients for 4 updates; operations a millisecond are 1
    assert record["gradient_floor_ms"] == pytest.approx(LINE_FLOPS * 5 / 4)
    n = 19
    mlp = 2 * n * (14 * 32 + 32 * 32 + 32 * 2)
    between = 2 * n * (32 * 32 + 32 * 2)
    assert record["metanet_floor_ms"] == pytest.approx(2 * mlp + between)
    assert "metanet_floor_ms" in capsys.readouterr().out


def test_a_base_rule_alone():
    with pytest.raises(ValueError, match="'default': expected a metanet"):
        outer_step.record_of(LINE, "default", 2, 1)
