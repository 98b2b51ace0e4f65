"""The list of runs, and which checkpoint a name means."""

import json
import os
from pathlib import Path

import pytest
import yaml

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import lock
from lit_gpt_scratch.runs import listing
from lit_gpt_scratch.runs.listing import find_checkpoint, read_info


def make_run(folder: Path, finished: bool = True, checkpoints: str = "best last") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for name in checkpoints.split():
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 700}}), "utf-8")
    about = {"network": "GPT", "parameters": 803_072, "finished": finished}
    (folder / "about.yaml").write_text(yaml.safe_dump(about), "utf-8")
    (folder / "metrics.csv").write_text("step,val/loss\n100,2.5\n200,1.75\n300,2\n", "utf-8")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_info_of_a_run(here: Path) -> None:
    info = read_info(make_run(here / "runs" / "a" / "version_0"))
    assert info[:6] == ("runs/a/version_0", "GPT", 803_072, 1.75, 300, 700)
    assert info.state == "finished"


def test_an_empty_folder_and_damaged_files_have_unknown_values(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    folder.mkdir()
    assert read_info(folder)[1:6] == ("unknown", None, None, 0, None)
    (folder / "about.yaml").write_text("[", "utf-8")
    (folder / "config.yaml").write_text("trainer: 3", "utf-8")
    (folder / "metrics.csv").write_bytes(b"step,val/loss\nx,y\n\xff")
    assert read_info(folder)[1:6] == ("unknown", None, None, 0, None)


def test_states(tmp_path: Path) -> None:
    stopped = make_run(tmp_path / "a", finished=False)
    assert read_info(stopped).state == "stopped"
    assert read_info(make_run(tmp_path / "b", finished=False, checkpoints="")).state == "failed"
    held = lock(stopped)
    assert held
    assert read_info(stopped).state == "training"
    held.release()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s ago"), (59, "59 s ago"), (150, "2 min ago"), (7300, "2 h ago"), (9e5, "10 d ago")],
)
def test_ages(seconds: float, text: str) -> None:
    assert listing.age(seconds) == text


def test_the_list_has_the_newest_last_and_paths_that_checkpoints_are_found_by(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, name in enumerate(("new", "old")):
        folder = make_run(here / "runs" / name / "version_0", finished=name == "old")
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (1e9 - age, 1e9 - age))
    main(["runs"])
    header, old, new, _, use = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "network", "size", "best", "written", "state,", "step"]
    assert old.split()[:5] == ["runs/old/version_0", "GPT", "803", "k", "1.7500"]
    assert (old.split()[-2:], new.split()[-2:]) == (["finished", "300/700"], ["stopped", "300/700"])
    assert use.endswith("predict --ckpt_path runs/new/version_0")
    assert max(map(len, (header, old, new))) <= 80
    assert find_checkpoint(old.split()[0], here) == Path("runs/old/version_0/checkpoints/best.ckpt")
    main(["runs", "runs/old", "--json"])
    (only,) = json.loads(capsys.readouterr().out)
    assert only["path"] == "runs/old/version_0"


def test_no_runs_yet_says_how_to_begin(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs").mkdir()
    main(["runs"])
    assert "There are no runs yet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["runs", "elsewhere"])
    assert "folder elsewhere does not exist" in capsys.readouterr().err


def test_the_command_for_the_newest_usable_run_names_its_plugin(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "runs" / "a" / "version_0")
    (here / "runs" / "a" / "version_0" / "config.yaml").write_text(
        "plugin: my plugin.py\n", "utf-8"
    )
    make_run(here / "runs" / "newer" / "version_0", checkpoints="")
    main(["runs"])
    use = capsys.readouterr().out.splitlines()[-1]
    assert use.endswith("predict --ckpt_path runs/a/version_0 --plugin 'my plugin.py'")


def test_a_folder_of_several_names_is_no_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "version_0")
    with pytest.raises(InputError, match="holds several runs"):
        find_checkpoint(str(tmp_path), tmp_path)


def test_a_folder_means_the_best_of_its_newest_version(tmp_path: Path) -> None:
    """Version 10 is newer than version 9. A run without the checkpoint does not count."""
    for version in (9, 10):
        make_run(tmp_path / "a" / f"version_{version}")
    make_run(tmp_path / "a" / "version_11", checkpoints="last")
    tenth = tmp_path / "a" / "version_10" / "checkpoints"
    for wanted in (tmp_path / "a", tenth.parent, tenth):
        assert find_checkpoint(str(wanted), tmp_path) == tenth / "best.ckpt"
    eleventh = tmp_path / "a" / "version_11" / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(tmp_path / "a"), tmp_path, "last") == eleventh


def test_a_folder_of_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "version_0", checkpoints="")
    with pytest.raises(InputError, match=r"this run has no best\.ckpt yet"):
        find_checkpoint(str(tmp_path / "a"), tmp_path)


def test_a_choice_is_announced_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(here / "runs" / "a" / "version_0")
    find_checkpoint("best", here / "runs")
    said = capsys.readouterr()
    path = "runs/a/version_0/checkpoints/best.ckpt"
    assert said.err.startswith(f"best is {path} (GPT, best val/loss 1.7500, ")
    assert (said.err.count("\n"), said.out) == (1, "")
    find_checkpoint(path, here)
    monkeypatch.setenv("LOCAL_RANK", "1")
    find_checkpoint("best", here / "runs")
    assert capsys.readouterr().err == "", "a full path is no choice, and only rank 0 prints"
