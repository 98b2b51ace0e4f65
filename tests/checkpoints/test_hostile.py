"""Hostile files given to real commands: their code never runs, and they are refused in one line."""

import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import train_small
from malicious_pickles import GADGETS, RunsCommand

from lit_gpt_scratch.cli import main

pytestmark = pytest.mark.slow

# Reads a checkpoint as a notebook does, without the command line.
LOAD = """
import sys
from lit_gpt_scratch import inspection
from lit_gpt_scratch.errors import exit_on_input_error
with exit_on_input_error("load"):
    inspection.load(sys.argv[1])
"""
FIT = ["fit", "--trainer.max_steps=9", "--trainer.accelerator=cpu", "--wandb.mode=disabled"]
COMMANDS = {
    "validate": ["-m", "lit_gpt_scratch", "validate", "--ckpt_path"],
    "predict": ["-m", "lit_gpt_scratch", "predict", "--max_new_tokens=5", "--ckpt_path"],
    "fit": ["-m", "lit_gpt_scratch", *FIT, "--ckpt_path"],
    "load": ["-c", LOAD],
}
# Runs one command with each of several files, and prints the exit codes.
EACH = """
import runpy, sys
count, command = int(sys.argv[1]), sys.argv[2:]
paths, (kind, what, *rest) = command[:count], command[count:]
for path in paths:
    sys.argv = ["command", *rest, path]
    try:
        exec(what) if kind == "-c" else runpy.run_module(what, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""
PARTS = ("callbacks", "state_dict", "hyper_parameters", "loops")
PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid checkpoint."""
    cli = train_small(
        tmp_path_factory.mktemp("fit"), "--model.net.layers=2", "--model.net.width=16"
    )
    return cli.folder / "checkpoints" / "last.ckpt"


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


def assert_refused(ended: subprocess.CompletedProcess[str], message: str) -> None:
    """Check that a process ended with a one-line error, without other output."""
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch(rf"[^\n]*error: [^\n]*({message})[^\n]*\n", ended.stderr), ended.stderr
    assert not ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_pickled_code(valid: Path, tmp_path: Path, command: str) -> None:
    """One process reads all files, since each start takes seconds."""
    marker, paths = tmp_path / "marker", []
    for i, gadget in enumerate(GADGETS):
        contents = torch.load(valid, weights_only=True)
        contents[PARTS[i % len(PARTS)]]["gadget"] = gadget(marker)
        paths.append(tmp_path / f"{gadget.__name__}.ckpt")
        torch.save(contents, paths[-1])
    ended = run(["-c", EACH, str(len(paths)), *map(str, paths), *COMMANDS[command]], tmp_path)
    assert not marker.exists()
    assert ended.stdout.split() == ["2"] * len(GADGETS), ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == len(GADGETS)
    assert all("is refused: it holds pickled code" in line for line in lines)
    assert set(tmp_path.iterdir()) == set(paths)
    for path in paths:
        torch.load(path, weights_only=False)
        assert marker.exists(), "the gadget is harmless, so this test shows nothing"
        marker.unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sharded_checkpoint_is_refused_and_its_pickle_never_run(
    tmp_path: Path, command: str
) -> None:
    """A distributed checkpoint's `.metadata` is a raw pickle, which Lightning would read."""
    folder, marker = tmp_path / "sharded.ckpt", tmp_path / "marker"
    folder.mkdir()
    torch.save({"state_dict": {}}, folder / "meta.pt")
    (folder / "__0_0.distcp").write_bytes(b"\0" * 100)
    (folder / ".metadata").write_bytes(pickle.dumps(RunsCommand(marker)))
    assert_refused(run([*COMMANDS[command], str(folder)], tmp_path), "is a folder")
    assert not marker.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert marker.exists(), "the gadget is harmless, so this test shows nothing"


Edit = Callable[[dict[str, Any]], Any]


def net(**values: Any) -> Edit:
    return lambda c: c["hyper_parameters"]["net"]["init_args"].update(values)


def ensemble(contents: dict[str, Any]) -> None:
    model = contents["hyper_parameters"]
    args = {"net": model["net"], "size": 10**9}
    model["net"] = {"class_path": "lit_gpt_scratch.models.Ensemble", "init_args": args}


def longer(contents: dict[str, Any]) -> None:
    """No parameter of ModernGPT has the context's size; buffers could have it."""
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        contents[part]["context"] = 1 << 20


HUGE: dict[str, tuple[Edit, int]] = {
    "layers": (net(layers=10**12), 2),
    "width": (net(width=1 << 40), 2),
    "an ensemble": (ensemble, 2),
    "unlogged losses": (lambda c: c.update(unlogged=torch.ones(1).expand(1 << 40)), 2),
    "a context": (longer, 0),
}


def peak(path: Path) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run `predict`; return its result and its peak memory in MiB."""
    ended = run(["-c", PEAK, *COMMANDS["predict"][1:], str(path)], path.parent)
    return ended, int(ended.stdout.rpartition("PEAK ")[2])


@pytest.fixture(scope="module")
def normal_peak(valid: Path) -> int:
    return peak(valid)[1]


@pytest.mark.parametrize("what", HUGE)
def test_huge_sizes_allocate_no_memory(
    valid: Path, normal_peak: int, tmp_path: Path, what: str
) -> None:
    """They are refused in one line, or the memory is never allocated."""
    edit, code = HUGE[what]
    contents = torch.load(valid, weights_only=True)
    edit(contents)
    torch.save(contents, tmp_path / "absurd.ckpt")
    ended, memory = peak(tmp_path / "absurd.ckpt")
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.count("\n") == bool(code)
    assert memory - normal_peak < 100


def test_a_wrong_optimizer_state_is_a_one_line_error_and_keeps_the_run(
    valid: Path, tmp_path: Path
) -> None:
    """A wrong optimizer state shows only at the first step."""
    contents = torch.load(valid, weights_only=True)
    state = contents["optimizer_states"][0]["state"]
    state[0] = {name: torch.ones(3) for name in state[0]}
    root = tmp_path / "runs" / "hostile" / "version_0"
    shutil.copytree(valid.parents[1], root)
    path = root / "checkpoints" / "last.ckpt"
    torch.save(contents, path)
    before = {p: p.read_bytes() for p in (root / "checkpoints").iterdir()}
    flags = [*COMMANDS["fit"], str(path), f"--trainer.default_root_dir={tmp_path}"]
    ended = run(flags, tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert f"resuming from {path} failed" in ended.stderr
    assert {p: p.read_bytes() for p in (root / "checkpoints").iterdir()} == before


def test_out_of_memory_is_a_one_line_error(valid: Path, tmp_path: Path) -> None:
    flags = ["--max_new_tokens=1000000000000"]
    ended = run([*COMMANDS["predict"], str(valid), *flags], tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(r"[^\n]*error: there is not enough memory: [^\n]*\n", ended.stderr)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["[", "- ", "{a: [", "? "])
@pytest.mark.parametrize("rounds", [3000, 25_000])
def test_a_deeply_nested_prompt_does_not_crash(
    valid: Path, text: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """jsonargparse parses every text as YAML, in C code whose stack could overflow."""
    flags = ["--max_new_tokens=1", f"--prompt={text * rounds}"]
    refused = pytest.raises(SystemExit, match=r"^2$")
    with refused if text != "? " or rounds > 10_000 else nullcontext():
        main(["predict", "--ckpt_path", str(valid), *flags])
    assert re.fullmatch(r"([^\n]*error: [^\n]*\n)?", capsys.readouterr().err)
