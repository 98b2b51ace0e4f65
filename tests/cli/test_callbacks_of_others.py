"""Lightning's callbacks, loggers and switches work together with ours."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from laws import train_small
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar

from lit_gpt_scratch.training import progress

OFTEN = ["--trainer.val_check_interval=1", "--trainer.log_every_n_steps=1"]
Printed = pytest.CaptureFixture[str]


def callback(name: str, **arguments: object) -> list[str]:
    """Return the flags of a callback."""
    flags = [f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()]
    return [f"--trainer.callbacks+={name}", *flags]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_model_checkpoint_saves_beside_ours(tmp_path: Path) -> None:
    """Both resume: the second one's state lies in our checkpoint."""
    theirs = tmp_path / "theirs"
    own = callback("ModelCheckpoint", monitor="val/bpc", dirpath=theirs, filename="x", save_top_k=1)
    run = train_small(tmp_path, *OFTEN, *own)
    assert names(theirs) == {"x.ckpt"}
    assert names(run.folder / "checkpoints") == {"best.ckpt", "last.ckpt"}
    last = run.folder / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["callbacks"]
    assert [key for key in state if "val/bpc" in key]
    again = train_small(tmp_path, *OFTEN, *own, f"--ckpt_path={last}", "--trainer.max_steps=5")
    assert again.trainer.global_step == 5


def test_early_stopping_ends_the_run_and_gives_its_reason(tmp_path: Path, capsys: Printed) -> None:
    own = callback("EarlyStopping", monitor="val/loss", patience=1, min_delta=100)
    run = train_small(tmp_path, *OFTEN, *own, "--trainer.max_steps=50")
    assert run.trainer.global_step == 2
    said = capsys.readouterr()
    assert "stopped      Monitored metric val/loss did not improve" in said.out
    assert "To resume:" not in said.err
    assert yaml.safe_load((run.folder / "about.yaml").read_text(encoding="utf-8"))["finished"]


class Bar(TQDMProgressBar):
    """Ends when rich's bar does, which cuts lines while it is on the terminal."""

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        print("the bar ends")


def test_the_summary_comes_after_their_progress_bar(tmp_path: Path, capsys: Printed) -> None:
    train_small(tmp_path, *callback(f"{__name__}.Bar"))
    assert "Next:" in capsys.readouterr().out.partition("the bar ends")[2]


def test_a_progress_bar_of_theirs_replaces_ours(tmp_path: Path, capsys: Printed) -> None:
    run = train_small(tmp_path, *OFTEN, *callback("TQDMProgressBar", refresh_rate=1))
    bars = [c for c in run.trainer.callbacks if isinstance(c, TQDMProgressBar)]
    assert len(bars) == 1
    ours = progress.ProgressBar, progress.LogLines
    assert not [c for c in run.trainer.callbacks if type(c) in ours]
    assert "4/" in capsys.readouterr().out


def test_a_learning_rate_monitor_logs_into_metrics_csv(tmp_path: Path) -> None:
    run = train_small(tmp_path, *OFTEN, *callback("LearningRateMonitor"))
    assert [c for c in run.trainer.callbacks if isinstance(c, LearningRateMonitor)]
    with (run.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    assert [name for name in columns if name.startswith("lr-")]


@pytest.mark.parametrize(
    "flags",
    [["--trainer.enable_model_summary=true"], callback("ModelSummary", max_depth=1)],
    ids=["flag", "callback"],
)
def test_a_model_summary_that_is_asked_for_is_printed(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Printed
) -> None:
    """Lightning prints it by its log, or by rich where that is installed."""
    train_small(tmp_path, *flags)
    assert (caplog.text + capsys.readouterr().out).count("Trainable params") == 1


@pytest.mark.parametrize("name", ["BatchSizeFinder", "LearningRateFinder"])
def test_a_finder_is_refused(name: str, tmp_path: Path, capsys: Printed) -> None:
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path, *callback(name))
    assert stop.value.code == 2
    assert f"{name} is not supported: start one run for each value" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_a_profile_that_is_asked_for_is_printed(
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch's profiler hooks into modules, which then cannot be copied to count operations."""
    monkeypatch.chdir(tmp_path)
    run = train_small(tmp_path, f"--trainer.profiler={name}")
    assert run.trainer.global_step == 4
    assert "FIT Profiler Report" in caplog.text
    assert ("aten::" if name == "pytorch" else "SampleRecorder.on_validation_end") in caplog.text
    assert ("Notice: mfu is not logged" in capsys.readouterr().err) == (name == "pytorch")
    assert (run.folder / "checkpoints/last.ckpt").exists()


def test_without_checkpointing_nothing_is_saved(tmp_path: Path) -> None:
    run = train_small(tmp_path, *OFTEN, "--trainer.enable_checkpointing=false")
    assert not [*tmp_path.rglob("*.ckpt")]
    assert "metrics.csv" in names(run.folder)


def test_without_a_logger_no_metrics_are_written(tmp_path: Path) -> None:
    run = train_small(tmp_path, *OFTEN, "--trainer.logger=false")
    assert "metrics.csv" not in names(run.folder)
    assert names(run.folder / "checkpoints") == {"best.ckpt", "last.ckpt"}


def test_a_logger_of_the_users_stands_beside_metrics_csv(tmp_path: Path) -> None:
    """Both have the same validation losses."""
    own = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    run = train_small(tmp_path, *OFTEN, *own)
    (theirs,) = (tmp_path / "logs").rglob("metrics.csv")
    losses = []
    for path in (theirs, run.folder / "metrics.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["val/loss"] for row in csv.DictReader(file)]
        losses.append([float(loss) for loss in found if loss])
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
