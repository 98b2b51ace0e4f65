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

from lit_gpt_scratch import inspection
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.errors import exit_on_input_error

pytestmark = pytest.mark.slow

FIT = ["fit", "--trainer.max_steps=9", "--trainer.accelerator=cpu", "--wandb.mode=disabled"]
COMMANDS = {
    "validate": ["validate", "--ckpt_path"],
    "predict": ["predict", "--max_new_tokens=5", "--ckpt_path"],
    "fit": [*FIT, "--ckpt_path"],
    "load": ["load"],  # as a notebook does, without the command line
}
PARTS = ("callbacks", "state_dict", "hyper_parameters", "loops")
# Reads files one after the other; prints exit code, lines of errors and peak memory in MiB of each.
PEAKS = """
import contextlib, io, resource, sys
from lit_gpt_scratch import inspection
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.errors import exit_on_input_error
for path in sys.argv[1:]:
    code, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(["predict", "--max_new_tokens=5", "--ckpt_path", path])
        except SystemExit as end:
            code = end.code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(code, said.getvalue().count("\\n"), peak)
"""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid checkpoint."""
    cli = train_small(
        tmp_path_factory.mktemp("fit"), "--model.net.layers=2", "--model.net.width=16"
    )
    return cli.folder / "checkpoints" / "last.ckpt"


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; return its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, exit_on_input_error("load"):
        inspection.load(arguments[1]) if arguments[0] == "load" else main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"[^\n]*error: [^\n]*\n", said.err), said.err
    assert not said.out.strip()
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_pickled_code(
    valid: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, paths = tmp_path / "marker", []
    for i, gadget in enumerate(GADGETS):
        contents = torch.load(valid, weights_only=True)
        contents[PARTS[i % len(PARTS)]]["gadget"] = gadget(marker)
        paths.append(tmp_path / f"{gadget.__name__}.ckpt")
        torch.save(contents, paths[-1])
    for path in paths:
        said = refusal([*COMMANDS[command], str(path)], capsys)
        assert "is refused: it holds pickled code" in said
    assert set(tmp_path.iterdir()) == set(paths), "no marker, and no other file"
    for path in paths:
        torch.load(path, weights_only=False)
        assert marker.exists(), "the gadget is harmless, so this test shows nothing"
        marker.unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sharded_checkpoint_is_refused_and_its_pickle_never_run(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A distributed checkpoint's `.metadata` is a raw pickle, which Lightning would read."""
    folder, marker = tmp_path / "sharded.ckpt", tmp_path / "marker"
    folder.mkdir()
    torch.save({"state_dict": {}}, folder / "meta.pt")
    (folder / "__0_0.distcp").write_bytes(b"\0" * 100)
    (folder / ".metadata").write_bytes(pickle.dumps(RunsCommand(marker)))
    assert "is a folder" in refusal([*COMMANDS[command], str(folder)], capsys)
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


@pytest.fixture(scope="module")
def peaks(valid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """Read a normal file, then each huge one, in one process; its peak can only rise."""
    folder = tmp_path_factory.mktemp("huge")
    paths = {"normal": valid}
    for what, (edit, _) in HUGE.items():
        contents = torch.load(valid, weights_only=True)
        edit(contents)
        paths[what] = folder / f"{what}.ckpt"
        torch.save(contents, paths[what])
    command = [sys.executable, "-c", PEAKS, *map(str, paths.values())]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return dict(zip(paths, lines, strict=True))


@pytest.mark.parametrize("what", HUGE)
def test_huge_sizes_allocate_no_memory(peaks: dict[str, tuple[int, ...]], what: str) -> None:
    """They are refused in one line, or the memory is never allocated."""
    code, lines, memory = peaks[what]
    assert code == HUGE[what][1]
    assert lines == bool(code)
    assert memory - peaks["normal"][2] < 100


def test_a_wrong_optimizer_state_is_a_one_line_error_and_keeps_the_run(
    valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    with pytest.raises(SystemExit) as stop:
        main([*COMMANDS["fit"], str(path), f"--trainer.default_root_dir={tmp_path}"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert f"resuming from {path} failed" in said
    assert {p: p.read_bytes() for p in (root / "checkpoints").iterdir()} == before


def test_out_of_memory_is_a_one_line_error(
    valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max_new_tokens=1000000000000"]
    said = refusal([*COMMANDS["predict"], str(valid), *flags], capsys)
    assert "error: there is not enough memory: " in said
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
