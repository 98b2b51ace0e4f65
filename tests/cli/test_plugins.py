"""Classes of one's own: found in the working directory and in files; suggested by their kind."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from laws import train_small

from lit_gpt_scratch.checkpoints.plugins import import_plugin, modules_of
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.messages import classes_for
from lit_gpt_scratch.errors import InputError

MODULE = "attention_of_a_user"
SOURCE = """
from lit_gpt_scratch.models import FusedAttention

class OwnAttention(FusedAttention):
    pass
"""
SWAP = f"--model.net.attention={MODULE}.OwnAttention"
SMALL = ["--model.net=GPT", "--model.net.layers=1", "--model.net.width=16"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's module, which is not on Python's path."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(folder)
    yield folder
    forget()


def forget() -> None:
    """Let the next command import the module as a new process does."""
    for name in (MODULE, f"{MODULE}.part"):
        sys.modules.pop(name, None)


def test_one_flag_swaps_the_attention_and_printed_commands_name_the_module(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_small(here, *SMALL, SWAP)
    assert type(run.model.net.blocks[0].attention).__name__ == "OwnAttention"
    assert yaml.safe_load((run.folder / "config.yaml").read_text("utf-8"))["plugin"] == MODULE
    commands = [line for line in capsys.readouterr().out.splitlines() if "--ckpt_path" in line]
    assert len(commands) == 2
    assert all(f"--plugin {MODULE}" in command for command in commands)


def test_a_checkpoint_needs_the_plugin_flag_which_takes_a_file_anywhere(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may come from a stranger: it must not choose what is imported."""
    run = train_small(here, *SMALL, SWAP)
    best = str(run.folder / "checkpoints" / "best.ckpt")
    forget()
    with pytest.raises(SystemExit):
        main(["predict", "--ckpt_path", best])
    assert f"{MODULE}.OwnAttention" in capsys.readouterr().err
    assert MODULE not in sys.modules
    elsewhere = tmp_path / "elsewhere"
    shutil.move(here, elsewhere)
    here.mkdir()
    monkeypatch.chdir(here)
    best = best.replace(str(here), str(elsewhere))
    main(["predict", "--ckpt_path", best, "--plugin", f"../elsewhere/{MODULE}.py",
          "--max_new_tokens", "3"])  # fmt: skip
    assert capsys.readouterr().out


def test_the_module_is_not_on_the_path_afterwards() -> None:
    before = [*sys.path]
    import_plugin(f"{MODULE}.py")
    assert sys.path == before


def test_a_module_that_was_edited_after_its_import_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a notebook would train the old class, and record the hash of the new file."""
    train_small(here, *SMALL, SWAP)
    file = here / f"{MODULE}.py"
    file.write_text(f"{SOURCE}    edited = True\n", encoding="utf-8")
    for flags in ([SWAP], [SWAP, f"--plugin={MODULE}"]):
        with pytest.raises(SystemExit):
            train_small(here, *SMALL, *flags)
        assert f"{file} has changed since it was imported: start" in capsys.readouterr().err
    assert [path.name for path in (here / "runs/gpt_cpu").iterdir()] == ["version_0"]
    with modules_of(here):
        importlib.reload(sys.modules[MODULE])
    run = train_small(here, *SMALL, SWAP)
    assert run.model.net.blocks[0].attention.edited


def test_a_part_of_a_package_that_was_edited_is_refused(here: Path) -> None:
    package = here / MODULE
    package.mkdir()
    (package / "__init__.py").write_text(f"from {MODULE} import part\n", encoding="utf-8")
    (package / "part.py").touch()
    import_plugin(MODULE)
    (package / "unused.py").touch()
    import_plugin(MODULE)
    (package / "part.py").write_text("edited = True", encoding="utf-8")
    with pytest.raises(InputError, match=r"part\.py has changed"):
        import_plugin(MODULE)


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("no_such_file.py", "there is no such file"),
        ("json.py", "another module is called json"),
        ("no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused(plugin: str, words: str, here: Path) -> None:
    (here / "json.py").touch()
    with pytest.raises(InputError, match=words) as error:
        import_plugin(plugin)
    assert str(error.value).startswith(f"--plugin {plugin}: ")


@pytest.mark.parametrize(
    ("flags", "hint", "listed", "not_listed"),
    [
        (["--model.net.attention=RotaryAtention"], "RotaryAttention", "MeanAttention", "ModernGPT"),
        (
            [f"--model.net.attention={MODULE}.OwnAtention"],
            f"{MODULE}.OwnAttention", "RotaryAttention", f"{MODULE}.FusedAttention",
        ),
        (["--model.net=GTP"], "GPT", "Bigram", "RotaryAttention"),
        (["--model.net=lit_gpt_scratch.models.GTP"], "GPT", "Bigram", "RotaryAttention"),
        (["--model.optimizer=Moun"], "Muon", "AdamW", "LitCharLM"),
        (["--model.schedule=WarmupCosin"], "WarmupCosine", "WarmupStableDecay", "LitCharLM"),
        (
            [f"--plugin={MODULE}", f"--model.net.attention={MODULE}.OwnAtention"],
            f"{MODULE}.OwnAttention", "RotaryAttention", f"{MODULE}.FusedAttention",
        ),
    ],
)  # fmt: skip
def test_a_wrong_class_is_answered_with_classes_of_its_kind(
    flags: list[str], hint: str, listed: str, not_listed: str, here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        train_small(here, *SMALL, *flags)
    line = capsys.readouterr().err
    assert f": did you mean {hint}?" in line
    classes = line.partition("There are ")[2].rstrip(".\n").split(", ")
    assert {hint, listed} <= {*classes}
    assert not_listed not in classes


def test_a_class_of_another_kind_is_answered_with_what_it_lacks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_small(here, *SMALL, "--model.net.attention=GPT")
    said = capsys.readouterr().err
    assert "--model.net.attention: this class needs alphabet_size, context. Give one of" in said


def test_every_class_of_the_ladder_has_a_kind() -> None:
    assert {"MeanAttention", "RotaryAttention"} <= {*classes_for("model.net.attention")}
    assert {"Bigram", "Ensemble", "GPT", "ModernGPT"} <= {*classes_for("model.net")}
    assert classes_for("model.optimizer") == ["AdamW", "Muon"]
    assert classes_for("data.corpus") == []
