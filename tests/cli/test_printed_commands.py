"""Every command that the program prints works as it was printed."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_gpt_scratch import cli
from lit_gpt_scratch.shell import shell_name

SMALL = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=16", "--data.batch_size=4",
    "--trainer.accelerator=cpu", "--trainer.max_steps=4", "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=2",
]  # fmt: skip
TINY_NET = ["--model.net.layers=1", "--model.net.width=16"]
PLUGIN = """
from lit_gpt_scratch.models import MultiHeadAttention

class Mine(MultiHeadAttention):
    pass
"""
CONFIG = """
plugin: mine
model: {net: {class_path: GPT, init_args: {layers: 1, width: 16, attention: mine.Mine}}}
"""


def environment() -> dict[str, str]:
    """Return an environment with this package, where no Python environment is active."""
    package = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PATH": os.defpath, "PYTHONPATH": package, "WANDB_MODE": "offline"}


def run(folder: Path, command: list[str] | str) -> str:
    """Run a command in a folder, as a user would; return what it prints."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), shell=isinstance(command, str),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout + done.stderr


def run_here(command: str, path: str | None = None) -> None:
    """Run a command in this process, because a new process takes seconds to start.

    A shell with that PATH (default: this process's) would find its program.
    """
    program, *args = shlex.split(command)
    assert shutil.which(program, path=path), command
    cli.main(args[2:] if args[0] == "-m" else args)


def printed(text: str) -> list[str]:
    """Return the commands in a text: lines that begin with two spaces and a program's path."""
    programs = r"lit-gpt-scratch|wandb|python[\d.]* -m (?:lit_gpt_scratch|wandb)"
    return re.findall(rf"^  ((?:\S*/)?(?:{programs}) .+)$", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [*TINY_NET, "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
        ["--config=own.yaml"],
        ["--model.net=GPT", *TINY_NET, "--model.net.attention=mine.Mine", "--plugin=mine"],
    ],
    ids=["torch.optim", "plugin of a config", "plugin"],
)
def test_the_commands_of_the_summary_work(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "mine.py").write_text(
        PLUGIN, encoding="utf-8"
    )  # in the working directory, not on the path
    (tmp_path / "own.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    folder = cli.main(["fit", *SMALL, *flags, "--wandb.mode=disabled"]).folder
    commands = printed(capsys.readouterr().out)
    begins = [f"{shell_name()} {name} " for name in ("predict", "validate", "report")]
    assert all(map(str.startswith, commands, begins))
    is_known = "mine" not in str(flags) and "own.yaml" not in str(flags)
    assert any(" playground " in command for command in commands) == is_known
    for command in commands:
        monkeypatch.delitem(sys.modules, "mine", raising=False)  # as in a new process
        run_here(command)
    resume = ["--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/last.ckpt"]
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    cli.main(["fit", *resume, "--trainer.max_steps=6"])


@pytest.mark.slow
def test_printed_commands_are_quoted_and_need_no_active_environment(tmp_path: Path) -> None:
    """As after `make train`: the shell finds neither this program nor wandb by its name."""
    fit = [sys.executable, "-m", "lit_gpt_scratch", "fit", *SMALL, *TINY_NET, "--name=a run's"]
    *_, predict, _, _, playground, sync = printed(run(tmp_path, fit))
    run(tmp_path, predict)
    assert "models: a run's" in run(tmp_path, playground)
    program, _, folder = sync.rpartition(" sync ")
    assert "offline" in run(tmp_path, f"{program} --help")
    (folder,) = run(tmp_path, f"ls -d {folder}").splitlines()
    assert (tmp_path / folder).is_dir()


@pytest.mark.slow
def test_the_command_of_a_stopped_run_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "lit_gpt_scratch", "fit", *SMALL, *TINY_NET, "--name=it's"]
    job = subprocess.Popen(
        [*command, "--trainer.max_steps=1000", "--trainer.val_check_interval=1000"],
        cwd=tmp_path, env=environment() | {"WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not [*tmp_path.rglob("metrics.csv")] and time.monotonic() < deadline:
        time.sleep(0.1)
    job.terminate()
    _, said = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, said
    (resume,) = printed(said)
    monkeypatch.chdir(tmp_path)
    run_here(resume, path=os.defpath)
    assert "at step 1000" in capsys.readouterr().out
    # A new run of that name prints the command for the unfinished one: there is none left.
    cli.main([*command[3:], "--wandb.mode=disabled"])
    assert not printed(capsys.readouterr().err)
