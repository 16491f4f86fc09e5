import json

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from benchmarks.parameter_roles import main


def test_table_and_records(tmp_path, capsys):
    output = tmp_path / "new" / "records.json"
    main(["--networks", "bert", "--output", str(output)])
    header, row = capsys.readouterr().out.splitlines()
    assert len(header) == len(row)
    (record,) = json.loads(output.read_text())["records"]
    assert record["network"] == row.split()[0] == "bert"
    correct = [record[way] for way in ("traced", "named", "unnamed")]
    assert correct == [record["parameters"]] * 3 == [41] * 3
    # tables, two layers with three heads, pooler and output
    assert record["apart"] == 3 + 2 * (9 + 3) + 2
