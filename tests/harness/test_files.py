import json

import pytest

from harness.files import append_line, make_folder, read_lines, write_json


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError, match="serializable"):
        write_json(path, {"y": [1.0] * 10000, "x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), (float("inf"), 1.5)], "y": {}})
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == {"x": [None, [None, 1.5]], "y": {}}


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{name}': expected a folder; got"):
        make_folder(tmp_path / name)


def test_a_folder_is_made_once(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "some" / "folder")
    assert (tmp_path / "some" / "folder").is_dir()


def test_a_line_that_was_cut_is_skipped_and_ended(tmp_path):
    path = tmp_path / "records.jsonl"
    append_line(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2')
    append_line(path, {"a": 3})
    assert read_lines([path, tmp_path / "none.jsonl"]) == [{"a": 1}, {"a": 3}]
