"""Run folders: locks, resuming in the same folder, unfinished runs and truncated configs."""

import os
import re
from pathlib import Path

import pytest
import yaml
from compare_runs import last
from laws import train_small

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.folder import (
    find_unfinished_run,
    lock_run_folder,
    refuse_truncated_config,
    resume_folder,
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run of four steps; tests only read it."""
    return train_small(tmp_path_factory.mktemp("root")).folder


def test_only_one_process_locks_a_run_folder(tmp_path: Path) -> None:
    held = lock_run_folder(tmp_path)
    with pytest.raises(InputError, match=r"is being trained by another process.*--ckpt_path"):
        lock_run_folder(tmp_path)
    held.release()
    lock_run_folder(tmp_path).release()


def test_resume_is_refused_while_the_folder_is_locked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refused command changes no file; after the lock is released, resume works."""
    folder = train_small(tmp_path).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    held = lock_run_folder(folder)
    flags = [f"--ckpt_path={last(folder)}", "--trainer.max_steps=6"]
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path, *flags)
    assert stop.value.code == 2
    assert "is being trained by another process" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    held.release()
    assert train_small(tmp_path, *flags).folder == folder


@pytest.mark.parametrize("file", ["config.yaml", "metrics.csv"])
@pytest.mark.parametrize(
    ("place", "name", "inside"),
    [
        ("runs/a/version_0/checkpoints", None, True),
        ("runs/a/version_0/checkpoints", "a", True),
        ("runs/a/version_0/checkpoints", "b", False),
        ("runs/a/version_0/kept", None, False),
        ("elsewhere/checkpoints", None, False),
    ],
)
def test_a_run_resumes_only_in_its_own_folder(
    place: str, name: str | None, inside: bool, file: str, tmp_path: Path
) -> None:
    """One of the two files is enough: the other one may be lost."""
    folder = tmp_path / "runs" / "a" / "version_0"
    folder.mkdir(parents=True)
    (folder / file).touch()
    checkpoint = tmp_path / place / "last.ckpt"
    assert resume_folder(checkpoint, name) == (folder if inside else None)


def test_the_newest_run_of_a_name_has_the_highest_version_number(tmp_path: Path) -> None:
    """The time of the files and the number of digits do not matter; an empty folder is no run."""
    for age, number in enumerate((10, 9, 2)):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        (folder / "metrics.csv").write_text("step\n4\n", encoding="utf-8")
        (folder / "config.yaml").write_text("trainer: {max_steps: 5}", encoding="utf-8")
        os.utime(folder / "config.yaml", (1e9 + age, 1e9 + age))
    (tmp_path / "version_11").mkdir()
    assert find_unfinished_run(tmp_path) == tmp_path / "version_10"
    assert find_unfinished_run(tmp_path / "missing") is None


def test_an_unfinished_run_of_the_same_name_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_small(tmp_path).folder
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["trainer"]["max_steps"] = 6
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    about = yaml.safe_load((folder / "about.yaml").read_text(encoding="utf-8"))
    assert about.pop("finished") is True
    (folder / "about.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    capsys.readouterr()
    train_small(tmp_path)
    message = capsys.readouterr().err
    assert "version_0 is not finished" in message
    assert f"--ckpt_path {last(folder)}" in message
    train_small(tmp_path)  # version_1 is finished
    assert "is not finished" not in capsys.readouterr().err


def test_a_run_that_is_locked_or_has_another_logger_is_not_reported(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    folder.mkdir()
    (folder / "config.yaml").write_text("trainer: {max_steps: 5}", encoding="utf-8")
    assert find_unfinished_run(tmp_path) is None  # no metrics.csv
    for step, unfinished in ((4, folder), (5, None)):
        (folder / "metrics.csv").write_text(f"step,lr\n{step},1\n", encoding="utf-8")
        assert find_unfinished_run(tmp_path) == unfinished
    (folder / "metrics.csv").write_text("step,lr\n4,1\n", encoding="utf-8")
    held = lock_run_folder(folder)
    assert find_unfinished_run(tmp_path) is None
    held.release()


def test_every_truncated_config_of_a_run_is_refused(run_folder: Path, tmp_path: Path) -> None:
    """Defaults would replace the missing part. A config of the user may be as short as it is."""
    text = (run_folder / "config.yaml").read_text(encoding="utf-8")
    config = tmp_path / "config.yaml"
    (tmp_path / "checkpoints").mkdir()
    for end in {*range(0, len(text), 7), *(m.end() for m in re.finditer("\n", text[:-1]))}:
        config.write_text(text[:end], encoding="utf-8")
        with pytest.raises((InputError, yaml.YAMLError)):  # the parser reports the latter earlier
            refuse_truncated_config(config)
    config.write_text(text, encoding="utf-8")
    refuse_truncated_config(config)
    elsewhere = tmp_path / "mine" / "config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("data:\n  context: 8\n", encoding="utf-8")
    refuse_truncated_config(elsewhere)


def test_resume_refuses_a_truncated_config_and_replaces_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_small(tmp_path).folder
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    flags = [f"--ckpt_path={last(folder)}", "--trainer.max_steps=5"]
    for part in (text[: text.index("trainer:")], text[: text.index("wandb:")], text[:-2]):
        config.write_text(part, encoding="utf-8")
        with pytest.raises(SystemExit) as stop:
            train_small(tmp_path, f"--config={config}", *flags)
        assert stop.value.code == 2
        assert "config" in capsys.readouterr().err
    config.unlink()
    assert train_small(tmp_path, *flags).folder == folder
    assert config.read_text(encoding="utf-8").count("\n") == text.count("\n")
