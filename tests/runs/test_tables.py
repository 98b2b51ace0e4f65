"""CSV files of a run: complete rows are read, a row that was cut off is ignored."""

from pathlib import Path

from fake_runs import write_csv

from lit_gpt_scratch.runs.folder import append_rows, read_rows, write_rows


def test_a_truncated_row_is_ignored_and_earlier_rows_are_kept(tmp_path: Path) -> None:
    """Wherever it is cut off: in a number, in quoted text, after a line break inside quotes."""
    rows = [{"step": "1", "text": 'a, "b"\nc\r'}, {"step": "2", "text": "d\ne\nf"}]
    write_csv(tmp_path / "complete.csv", rows)
    data = (tmp_path / "complete.csv").read_bytes()
    assert read_rows(tmp_path / "complete.csv") == (["step", "text"], rows)
    second = data.index(b"2,")
    for size in range(len(data)):
        (tmp_path / "truncated.csv").write_bytes(data[:size])
        _, found = read_rows(tmp_path / "truncated.csv")
        assert found == (rows[:1] if size >= second else [])


def test_a_missing_file_has_no_columns_and_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == ([], [])


def test_written_and_appended_rows_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    append_rows(path, ["step", "text"], [(1, 'a "b"\n')])
    append_rows(path, ["step", "text"], [(2, "c")])
    expected = [{"step": "1", "text": 'a "b"\n'}, {"step": "2", "text": "c"}]
    assert read_rows(path) == (["step", "text"], expected)
    write_rows(path, ["step", "text", "more"], expected)
    assert read_rows(path) == (["step", "text", "more"], [row | {"more": ""} for row in expected])
