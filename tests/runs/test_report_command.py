"""The report's scoreboard and references, and the command `report`, without a browser."""

import math
from pathlib import Path

import pytest
from fake_runs import metric_rows, write_csv, write_fake_run

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256
from lit_gpt_scratch.runs import report
from lit_gpt_scratch.runs.reading import Run, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "runs" / "gpt" / "version_0")


def read(folder: Path) -> Run:
    return read_run(folder, "label")


def test_the_scoreboard_has_the_values_of_the_files(tmp_path: Path) -> None:
    """Best and last loss differ, and only runs validated on the same text are compared."""
    folders = [
        write_fake_run(tmp_path / name, scale) for name, scale in {"a": 1.5, "b": 1.4}.items()
    ]
    rows = [row for step in (100, 400, 900) for row in metric_rows(step, 1.5)]
    rows[3] |= {"val/loss": 1.25, "val/bpc": 1.25 / math.log(2)}  # at step 400; it rises again
    write_csv(folders[0] / "metrics.csv", rows)
    other = write_fake_run(tmp_path / "c", 1.2)
    config = (
        (other / "config.yaml")
        .read_text(encoding="utf-8")
        .replace("test_fraction: 0.0", "test_fraction: 0.1")
    )
    (other / "config.yaml").write_text(config, encoding="utf-8")
    board = report.make_scoreboard([read(folder) for folder in [*folders, other]])
    last_b = 1.4 * (1 + 3 / math.sqrt(1200))
    bits = [f"{loss / math.log(2):.3f}" for loss in (1.25, last_b)]
    texts = [[text for text, _ in row] for row in board]
    assert texts[0] == ["4,225", "1.6500", "1.2500", bits[0], "18", "10,002", "30%"]
    assert texts[1][1:5] == [f"{last_b:.4f}", f"{last_b:.4f}", bits[1], "24"]
    bold = [[best for _, best in row] for row in board]
    assert bold[0] == [False, False, True, True, False, False, True]
    assert bold[1] == [False, True, False, False, False, True, True]
    assert bold[2] == [False] * 7


def test_the_help_calls_no_argument_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--help"])
    assert "required" not in capsys.readouterr().out


def test_references_appear_only_with_runs_on_the_same_text(run: Path) -> None:
    assert "nanoGPT on a GPU" in report.render_report([read(run)])
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for part in ("val_fraction: 0.1", TINY_SHAKESPEARE_SHA256):
        (run / "config.yaml").write_text(config.replace(part, f"{part}5"), encoding="utf-8")
        assert "nanoGPT on a GPU" not in report.render_report([read(run)])


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [
        read(write_fake_run(tmp_path / name, scale)) for name, scale in {"a": 1.5, "b": 1.0}.items()
    ]
    assert report.find_differences(runs) == [("model.net.width", ["96", "64"])]
    assert report.find_differences(runs[:1]) == []


def test_the_command_writes_one_file_and_prints_its_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It replaces an older report."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        report.main([])
        assert capsys.readouterr().out == "report.html\n"
    report.main([str(run), "--output", "other.html"])
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "report.html", "other.html"}


ERRORS = {
    "runs folder nowhere does not exist": ["nowhere"],
    "folder empty contains no run": ["empty"],
    "output notes.html exists and is no report": ["runs", "--output=notes.html"],
    "output empty cannot be written (Is a directory)": ["runs", "--output=empty"],
    "output notes.html/r.html cannot be written": ["runs", "--output=notes.html/r.html"],
    "--outptu": ["runs", "--outptu=report.html"],
}


@pytest.mark.parametrize("message", ERRORS)
@pytest.mark.usefixtures("run")
def test_an_error_is_one_line_and_nothing_is_written(
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("<p>mine</p>", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        report.main(ERRORS[message])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in line
    assert line.startswith("lit-gpt-scratch report: error: ")
    assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.html").read_text(encoding="utf-8") == "<p>mine</p>"
