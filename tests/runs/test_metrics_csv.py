"""metrics.csv, trimming of tables on resume, and the notice about lost rows."""

from pathlib import Path

import pytest
from compare_runs import last
from laws import train_small

from lit_gpt_scratch.runs.callbacks import RowCounts
from lit_gpt_scratch.runs.folder import trim_after_step
from lit_gpt_scratch.runs.loggers import MetricsCSV


def test_rows_are_appended_and_new_columns_are_added(tmp_path: Path) -> None:
    """A second logger, as in a resumed run, continues the file."""
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 1.5}, 2)
    logger.log_metrics({"val/loss": 2.5}, 2)
    MetricsCSV(tmp_path).log_metrics({"train/loss": 0.5}, 4)
    assert (tmp_path / "metrics.csv").read_bytes().decode().splitlines() == [
        "step,train/loss,val/loss", "2,1.5,", "2,,2.5", "4,0.5,",
    ]  # fmt: skip


def test_trim_removes_later_rows_images_truncated_rows_and_partial_files(tmp_path: Path) -> None:
    text = 'step,prompt,text\n1,a,"two\nlines"\n2,b,"a ""quoted"" one"\n3,c,later\n3,d,"to'
    (tmp_path / "samples.csv").write_text(text, newline="", encoding="utf-8")
    (tmp_path / "attention").mkdir()
    for step in ("000002", "000003", "x"):  # the last one is not ours
        (tmp_path / "attention" / f"step_{step}.png").touch()
    partial = tmp_path / "checkpoints" / ".last.ckpt-abcdefgh.partial"
    partial.mkdir(parents=True)
    (partial / "last.ckpt").touch()
    trim_after_step(tmp_path, 2)
    assert not partial.exists()
    assert (tmp_path / "samples.csv").read_bytes().decode().replace("\r", "") == text[
        : text.index("3,c")
    ]
    pictures = sorted(path.name for path in (tmp_path / "attention").iterdir())
    assert pictures == ["step_000002.png", "step_x.png"]


def test_resume_reports_lost_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only rows before the checkpoint count, and only in the run's own folder."""
    every = "--trainer.log_every_n_steps=1"
    folder = train_small(tmp_path, every).folder
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("99,")
    train_small(tmp_path, every, f"--ckpt_path={last(folder)}", "--trainer.max_steps=5")
    train_small(tmp_path, f"--ckpt_path={last(folder)}", "--trainer.max_steps=6", "--name=other")
    assert "lacks rows" not in capsys.readouterr().err
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(rows[:-1]), encoding="utf-8")
    train_small(tmp_path, every, f"--ckpt_path={last(folder)}", "--trainer.max_steps=7")
    assert "Notice: metrics.csv lacks rows" in capsys.readouterr().err


def test_the_row_counts_keep_their_key_in_checkpoints(tmp_path: Path) -> None:
    """Checkpoints of older versions have this key."""
    assert RowCounts(tmp_path).state_key == "Saver"
