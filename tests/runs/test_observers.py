"""What observes a run never ends it: recorders, W&B, the throughput count, the last sample."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from laws import train_small

from lit_gpt_scratch.models import MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.runs import loggers
from lit_gpt_scratch.runs.callbacks import SampleRecorder, SymbolLossRecorder
from lit_gpt_scratch.runs.folder import read_rows
from lit_gpt_scratch.runs.loggers import WandbRun, WandbSettings

OFTEN = ("--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2")


class WithoutWeights(MultiHeadAttention):
    def weights(self, hidden: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("no weights here")


def steps(folder: Path, table: str = "metrics") -> list[str]:
    return [row["step"] for row in read_rows(folder / f"{table}.csv")[1]]


def test_an_error_in_weights_is_one_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attention = f"{__name__}.WithoutWeights"
    run = train_small(
        tmp_path, *OFTEN, "--model.net=GPT", "--model.net.layers=1", "--model.net.width=16",
        f"--plugin={__name__}", f"--model.net.attention={attention}",
    )  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("Notice: AttentionRecorder has failed (ZeroDivisionError in") == 1
    assert run.trainer.global_step == 4
    assert not (run.folder / "attention").exists()
    assert steps(run.folder, "samples") == ["2", "2", "4", "4"]


@pytest.mark.parametrize("recorder", [SampleRecorder, SymbolLossRecorder])
def test_an_error_in_a_recorder_is_one_notice(
    recorder: type, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr(recorder, "record", fail)
    run = train_small(tmp_path, *OFTEN)
    assert capsys.readouterr().err.count(f"{recorder.__name__} has failed (KeyError in") == 1
    assert steps(run.folder) == ["2", "2", "4", "4"]


def test_an_error_in_the_count_of_operations_is_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("uncountable")

    monkeypatch.setattr("lit_gpt_scratch.training.throughput.measure_flops", fail)
    run = train_small(tmp_path, *OFTEN)
    assert "mfu is not logged: operations cannot be counted (TypeError" in capsys.readouterr().err
    assert steps(run.folder) == ["2", "2", "4", "4"]


def test_a_network_that_cannot_be_sampled_has_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("one character is too short")

    monkeypatch.setattr("lit_gpt_scratch.training.module.generate_text", fail)
    train_small(tmp_path, *OFTEN)
    said = capsys.readouterr()
    assert "SampleRecorder has failed (IndexError in" in said.err
    assert "A sample:\n\n  none: IndexError in" in said.out


@pytest.mark.parametrize("fails_at", ["start", "log", "finish"])
def test_a_failure_of_wandb_ends_nothing(
    fails_at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Broken:
        summary: ClassVar[dict[str, Any]] = {}

        def log(self, *_: Any, **__: Any) -> None:
            if fails_at == "log":
                raise ConnectionResetError("Connection lost")

        def log_artifact(self, *_: Any, **__: Any) -> None:
            pass

        def finish(self) -> None:
            raise OSError("disk")

    def start(_: WandbRun) -> Broken:
        if fails_at == "start":
            raise ImportError("no protobuf")
        return Broken()

    monkeypatch.setattr(WandbRun, "_start", start)
    run = train_small(tmp_path, *OFTEN, "--wandb.mode=offline")
    said = capsys.readouterr()
    assert said.err.count("Notice: W&B has failed and records no more (") == 1
    assert ("W&B          failed, and has not recorded" in said.out) == (fails_at != "finish")
    assert steps(run.folder) == ["2", "2", "4", "4"]
    assert yaml.safe_load((run.folder / "about.yaml").read_text(encoding="utf-8"))["finished"]


def test_flags_come_before_the_environment_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NAME": "mine", "PROJECT": "gpts", "DIR": "/elsewhere", "MODE": "online"}
    for name, value in names.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = Path("runs/a/version_0")
    options = WandbRun(folder, {}, WandbSettings()).options
    assert {key: options[key] for key in ("name", "project", "dir", "mode")} == {
        "name": "mine", "project": "gpts", "dir": "/elsewhere", "mode": "online"
    }  # fmt: skip
    flags = WandbRun(folder, {}, WandbSettings(project="other", mode="offline")).options
    assert (flags["project"], flags["mode"]) == ("other", "offline")
    for name in names:
        monkeypatch.setenv(f"WANDB_{name}", "")  # empty is unset
    options = WandbRun(folder, {}, WandbSettings()).options
    assert (options["name"], options["project"], options["dir"], options["mode"]) == (
        "a/version_0", "lit_gpt_scratch", folder, "offline"
    )  # fmt: skip


def test_other_ranks_start_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "is_rank_zero", lambda: False)
    assert WandbRun(tmp_path, {}, WandbSettings()).experiment is None


def test_single_head_attention_still_has_weights() -> None:
    """The premise of the first test: pictures are drawn of `weights`."""
    assert hasattr(SingleHeadAttention, "weights")


@pytest.mark.slow
def test_wandb_reads_its_variables_itself_unless_they_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # else the logger would set it for good
    monkeypatch.setenv("WANDB_TAGS", "")
    monkeypatch.setenv("WANDB_ENTITY", "")
    monkeypatch.setenv("WANDB_RUN_GROUP", "lesson")
    logger = WandbRun(tmp_path, {}, WandbSettings())
    run = logger.experiment
    assert (run.tags, run.group, logger.failure) == ((), "lesson", "")
    logger.finalize("success")
    assert logger.experiment is None
