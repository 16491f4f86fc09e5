from harness.json_lines import append_line, read_lines


def test_a_line_that_was_cut_is_skipped_and_ended(tmp_path):
    path = tmp_path / "records.jsonl"
    append_line(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2')
    append_line(path, {"a": 3})
    assert read_lines([path, tmp_path / "none.jsonl"]) == [{"a": 1}, {"a": 3}]
