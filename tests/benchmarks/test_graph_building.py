import json

import pytest

pytest.importorskip("torchvision")

from benchmarks.graph_building import main


@pytest.mark.filterwarnings("ignore")
def test_table_and_records(tmp_path, capsys):
    output = tmp_path / "new" / "records.json"
    main(["--families", "resnet18", "--repeats", "1", "--output", str(output)])
    header, row = capsys.readouterr().out.splitlines()
    assert len(header) == len(row)
    (record,) = json.loads(output.read_text())["records"]
    assert record["family"] == row.split()[0] == "resnet18"
    assert record["elements"] == 11_689_512
    assert (record["unplaced"], record["components"]) == (0, 1)
    assert record["ratio"] == record["graph_s"] / record["export_s"]
