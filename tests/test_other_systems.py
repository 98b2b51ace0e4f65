"""All commands work without what only Unix has; a Windows machine is not at hand.

A process without these modules and functions imports every module of the package, and runs the
commands.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
FUNCTIONS = ("fork", "forkpty", "geteuid", "getpgrp", "getuid", "kill", "killpg", "mkfifo",
             "setsid", "statvfs", "uname")  # fmt: skip
WITHOUT_UNIX = f"""
import sys
for name in {MODULES}:
    sys.modules[name] = None
import lightning.pytorch, matplotlib.pyplot, os, pkgutil, signal, torch, wandb
for name in {FUNCTIONS}:
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGHUP"):  # Lightning uses SIGKILL itself, except on Windows
    if hasattr(signal, name):
        delattr(signal, name)
import lit_gpt_scratch
from lit_gpt_scratch import cli
for found in pkgutil.walk_packages(lit_gpt_scratch.__path__, "lit_gpt_scratch."):
    if not found.name.endswith("__main__"):
        __import__(found.name)
for line in sys.stdin.read().splitlines():
    cli.main(line.split())
"""


def run_without_unix(folder: Path, *commands: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX],
        input="\n".join(commands), cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.slow
def test_every_module_and_command_works_without_what_only_unix_has(tmp_path: Path) -> None:
    small = "--data.corpus sample --data.sample_size 20000 --data.context 16 --wandb.mode disabled"
    small += " --trainer.accelerator cpu"
    run, last = "runs/a/version_0", "runs/a/version_0/checkpoints/last.ckpt"
    done = run_without_unix(
        tmp_path,
        f"fit --name a --model.net Bigram --trainer.max_steps 3 {small}",
        f"fit --config {run}/config.yaml --ckpt_path {last} --trainer.max_steps 5",
        f"validate --ckpt_path {last}",
        f"predict --ckpt_path {last} --max_new_tokens 5",
        f"export --ckpt_path {last} --output exported",
        f"report {run} --output report.html",
    )
    assert done.returncode == 0, done.stderr
    assert "at step 5" in done.stdout
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "exported").is_dir()


def test_the_process_really_lacks_them() -> None:
    """The premise of the test above."""
    code = WITHOUT_UNIX.partition("import lit_gpt_scratch")[0]
    code = code.replace("lightning.pytorch, matplotlib.pyplot, ", "").replace(", torch, wandb", "")
    for use in ("import fcntl", "import resource", "os.geteuid()", "os.fork()", "signal.SIGALRM"):
        done = subprocess.run([sys.executable, "-c", f"{code}\n{use}"], stderr=-1, check=False)
        assert done.returncode == 1, use
