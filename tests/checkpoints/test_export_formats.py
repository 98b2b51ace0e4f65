"""The command `export` with --format onnx and huggingface: what it writes, prints and refuses."""

import ast
import json
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import train_small
from refusals import assert_refused

from lit_gpt_scratch.cli import export_command
from lit_gpt_scratch.cli import main as run_command
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, Bigram
from lit_gpt_scratch.training import LitCharLM

FORMATS = ["onnx", "huggingface"]
FILES = {
    "onnx": {"config.json", "model.onnx"},
    "huggingface": {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    },
}  # fmt: skip
PLUGIN = """
from lit_gpt_scratch.models import Bigram
class MyNet(Bigram):
    pass
"""


NETS = {"onnx": Bigram, "huggingface": partial(GPT, layers=1, width=16)}


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best.ckpt of a small GPT."""
    flags = ["--model.net=GPT", "--model.net.layers=1", "--model.net.width=16"]
    run = train_small(tmp_path_factory.mktemp("fit"), *flags)
    return run.folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module", params=FORMATS)
def exported(best: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    """The only file in its parent; the folder has the format's name."""
    folder = tmp_path_factory.mktemp("exported") / request.param
    export_command.export(str(best), folder, request.param)
    return folder


def save(path: Path, net: Any, alphabet: str, context: int) -> Path:
    """Save an untrained model as a checkpoint."""
    model = LitCharLM(net=net, alphabet=alphabet, context=context)
    data = {"corpus": "sample", "sha256": None, "context": context}
    contents = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": data | {"val_fraction": 0.1, "test_fraction": 0.0},
    }
    torch.save(contents, path)
    return path


def export(*args: object) -> None:
    export_command.main([str(arg) for arg in args])


def printed_code(printed: str) -> str:
    """Return the indented lines after the line `Next, in Python`."""
    first, then, *lines = printed.splitlines()
    assert first.endswith(" MB")
    assert then.startswith("Next, in Python")
    assert all(line.startswith("  ") for line in lines)
    return "\n".join(line[2:] for line in lines)


def test_the_folder_has_these_files_and_says_where_it_is_from(best: Path, exported: Path) -> None:
    assert {file.name for file in exported.iterdir()} == FILES[exported.name]
    assert [*exported.parent.iterdir()] == [exported]
    config = json.loads((exported / "config.json").read_text("utf-8"))
    saved = torch.load(best, weights_only=True)
    assert config["format"] == f"lit_gpt_scratch {exported.name} 1"
    assert config["version"] == version("lit_gpt_scratch")
    assert config["global_step"] == saved["global_step"] > 0
    assert 0 < config["val_loss"] < 10


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("alphabet", "context"), [("\n :EMOR", 8), ("\\'\"{}", 3), ("☃😀", 1)])
def test_the_printed_code_runs_as_printed(
    kind: str, alphabet: str, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also for a path with quotes, and an alphabet without the usual prompt."""
    alphabet = "".join(sorted(alphabet))
    save(tmp_path / "other.ckpt", NETS[kind], alphabet, context)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    export("--ckpt_path", "other.ckpt", "--output", """it's "out" {x}""", "--format", kind)
    code = printed_code(capsys.readouterr().out)
    exec(code, {})
    said = capsys.readouterr().out
    if kind == "onnx":
        assert ast.literal_eval(said) in alphabet
    else:
        prompt = "ROMEO:" if context == 8 else alphabet[0]
        assert said.startswith(prompt)
        assert len(said) == max(context, len(prompt) + 1) + 1


@pytest.mark.slow
def test_nothing_else_is_printed(best: Path, tmp_path: Path) -> None:
    """PyTorch's exporter writes much; some of it through handlers that pytest replaces."""
    command = [sys.executable, "-m", "lit_gpt_scratch", "export", "--ckpt_path", str(best)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--format", "onnx"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert printed_code(done.stdout)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_our_commands_say_in_one_line_that_the_folder_is_for_others(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    title = {"onnx": "ONNX", "huggingface": "Hugging Face"}[exported.name]
    message = f"is an export for {title}, which only other programs read: give the .ckpt file"
    assert_refused(exported, message)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_command(["predict", "--ckpt_path", str(exported)])
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_an_existing_output_is_refused_before_any_work(
    best: Path, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_command, "read_checkpoint", None)
    with pytest.raises(InputError, match="exists already: name a new folder"):
        export_command.export(str(best), tmp_path, kind)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_before_any_work(
    missing: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_command, "read_checkpoint", None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        InputError, match=r"^--format onnx needs .*: pip install onnx onnxscript\.$"
    ):
        export_command.export(str(best), tmp_path / "out", "onnx")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tmp_path / "other.ckpt", NETS[kind], "ab", 4)
    written = []

    def write(path: Path) -> Any:
        written.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_gpt_scratch.checkpoints.formats.atomic_write", write)
    with pytest.raises(InputError, match="out cannot be written: No space left"):
        export_command.export(str(checkpoint), tmp_path / "out", kind)
    assert written
    assert [*tmp_path.iterdir()] == [checkpoint]


def test_the_network_of_a_plugin_is_exported_with_its_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_nets.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    my = save(tmp_path / "my.ckpt", import_module("my_nets").MyNet, "abc", 4)
    ask = ["--ckpt_path", my, "--output", tmp_path / "out"]
    for flags in ([], ["--plugin", "my_nets", "--format", "huggingface"]):
        with pytest.raises(SystemExit):
            export(*ask, "--format", "onnx", *flags)
        assert not (tmp_path / "out").exists()
    assert "MyNet is another class" in capsys.readouterr().err
    export(*ask, "--format", "onnx", "--plugin", "my_nets")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES["onnx"]
    capsys.readouterr()
    export(*ask[:3], tmp_path / "own", "--plugin", "my_nets")
    [*_, command] = capsys.readouterr().out.splitlines()
    assert command.endswith(" --plugin my_nets")
