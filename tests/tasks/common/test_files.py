import json

import pytest

from tasks.common.files import write_json


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"y": [1.0] * 10000, "x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]
