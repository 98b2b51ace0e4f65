"""What `fit` prints about a run."""

import shlex
from pathlib import Path

import pytest
from laws import train_small

from lit_gpt_scratch.runs.summary import format_loss, print_resume_command


def test_the_summary_ends_with_commands_for_the_best_checkpoint_the_report_and_the_playground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths are quoted for the shell."""
    folder = train_small(tmp_path / "a folder").folder
    _, _, commands = capsys.readouterr().out.partition("Next:\n")
    best = shlex.quote((folder / "checkpoints" / "best.ckpt").as_posix())
    assert [line.strip() for line in commands.splitlines()] == [
        f"lit-gpt-scratch predict --ckpt_path {best} --prompt ROMEO:",
        f"lit-gpt-scratch validate --ckpt_path {best}",
        f"lit-gpt-scratch report {shlex.quote(folder.as_posix())}",
        f"lit-gpt-scratch playground {best}",
    ]


def test_the_resume_command_is_printed_if_there_is_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_resume_command(tmp_path, "Stopped.")
    assert capsys.readouterr().err == ""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    print_resume_command(tmp_path, "Stopped.")
    message, command = capsys.readouterr().err.splitlines()
    assert message.startswith("Stopped.")
    assert shlex.split(command) == [
        "lit-gpt-scratch", "fit", "--config", (tmp_path / "config.yaml").as_posix(),
        "--ckpt_path", (tmp_path / "checkpoints" / "last.ckpt").as_posix(),
    ]  # fmt: skip


def test_a_loss_is_in_nats_and_bits() -> None:
    assert format_loss(1.0) == "1.0000 nats (1.443 bits) per character"
    assert format_loss(None) == "not validated"
