"""Tests of reading in `formats.py`: valid checkpoints load exactly, and other files are refused."""

import os
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import random_ids, train_small
from peak_memory import peak_memory
from refusals import assert_refused, predict

from lit_gpt_scratch import inspection
from lit_gpt_scratch.checkpoints.formats import read_checkpoint
from lit_gpt_scratch.checkpoints.plugins import import_plugin
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs import find_checkpoint

LIGHTNING = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "hyper_parameters": {"lr": 1}}
PLUGIN = """
from lit_gpt_scratch.models import GPT
class Mine(GPT):
    pass
"""


# What is written


def is_plain(value: Any) -> bool:
    """Return whether a nested value is plain data."""
    if isinstance(value, dict):
        return all(is_plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_is_plain_data(fit: CharCLI, name: str) -> None:
    contents = torch.load(fit.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert is_plain(contents)
    assert contents["hyper_parameters"]["alphabet"] == fit.datamodule.alphabet
    assert contents["hyper_parameters"]["context"] == 8
    assert contents["datamodule_hyper_parameters"]["corpus"] == "sample"
    assert len(contents["datamodule_hyper_parameters"]["sha256"]) == 64


@torch.no_grad()
def test_a_loaded_model_equals_the_trained_one_exactly(fit: CharCLI, path: Path) -> None:
    """Weights, logits, tokenizer and context all come from the file."""
    model, trained = inspection.load(path), fit.model.eval()
    ids = random_ids(len(trained.tokenizer), 3, 8)
    assert torch.equal(model(ids), trained(ids))
    assert set(model.state_dict()) == set(trained.state_dict())
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert model.tokenizer.alphabet == trained.tokenizer.alphabet
    assert model.context == 8
    assert not model.training


def test_reading_returns_the_saved_contents(path: Path) -> None:
    contents, saved = read_checkpoint(path), torch.load(path, weights_only=True)
    assert contents["hyper_parameters"] == saved["hyper_parameters"]
    for name, weight in saved["state_dict"].items():
        assert torch.equal(contents["state_dict"][name], weight)


# What is refused


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.ckpt", "no such file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is a folder")


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"state_dict": {}},
        {"a": torch.ones(3)},
        [1, 2],
        torch.ones(3),
        {"state_dict": {}, "hyper_parameters": {}, "datamodule_hyper_parameters": []},
        LIGHTNING,
        LIGHTNING | {"datamodule_hyper_parameters": {"folder": "images"}},
    ],
)
def test_a_file_of_another_program_is_refused(tmp_path: Path, contents: Any) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save(contents, path)
    assert_refused(path, "was not written by lit_gpt_scratch")


@pytest.mark.parametrize("contents", [b"", b"x", b"PK", b"PK\3\4", b"hello\n" * 1000, bytes(5000)])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_bytes(contents)
    assert_refused(path, "not a checkpoint|pickled code")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert_refused(path, "damaged|not a checkpoint")


@pytest.mark.parametrize("missing", [1, 22, 100])
def test_a_file_without_its_last_bytes_is_refused(path: Path, missing: int) -> None:
    path.write_bytes(path.read_bytes()[:-missing])
    assert_refused(path, "damaged|not a checkpoint")


@pytest.mark.parametrize("at", [0, 1, 2, 3, -22, -21, -20, -19])
def test_a_flipped_bit_in_the_archives_signature_is_refused(path: Path, at: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 4
    path.write_bytes(damaged)
    assert_refused(path, "damaged|not a checkpoint")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_a_flipped_bit_anywhere_is_refused_or_harmless(
    fit: CharCLI, path: Path, where: float, bit: int, at_the_end: bool
) -> None:
    """A changed weight is harmless; every error must be an InputError."""
    damaged = bytearray((fit.folder / "checkpoints" / "last.ckpt").read_bytes())
    size = 8000  # at both ends, where the archive's tables are; the rest is mostly weights
    at = len(damaged) - 1 - int(where * size) if at_the_end else int(where * size)
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        contents = read_checkpoint(path)
    except InputError:
        return
    assert is_plain(contents)


@pytest.mark.parametrize(
    "edit",
    [
        lambda contents: contents["state_dict"].popitem(),
        lambda contents: contents["hyper_parameters"]["net"]["init_args"].update(width=32),
        lambda contents: contents["hyper_parameters"].update(context=16),
        lambda contents: contents["hyper_parameters"].update(context="long"),
        lambda contents: contents["hyper_parameters"].update(of_tomorrow=1),
    ],
    ids=["a weight", "a width", "a context", "a type", "an unknown setting"],
)
def test_a_checkpoint_with_inconsistent_parts_is_refused(edited: Any, edit: Any) -> None:
    with pytest.raises(InputError):
        inspection.load(edited(edit))


@pytest.mark.parametrize("read", [inspection.load, predict])
@pytest.mark.parametrize(
    "sizes",
    [{"width": 1 << 12}, {"width": 1 << 40}, {"width": 1 << 62}, {"layers": 10**12}],
    ids=["width", "beyond memory", "beyond numbers", "layers"],
)
def test_a_huge_network_is_refused_without_allocating_memory(
    edited: Any, sizes: dict[str, int], read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(lambda c: c["hyper_parameters"]["net"]["init_args"].update(sizes))
    before = peak_memory()
    with pytest.raises((InputError, SystemExit)) as error:
        read(path)
    printed = str(error.value) + capsys.readouterr().err
    assert "too few weights for this network" in printed
    assert peak_memory() - before < 300_000  # KiB


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("datamodule_hyper_parameters", {"context": "long"}),
        ("datamodule_hyper_parameters", {"batch_size": None}),
        ("datamodule_hyper_parameters", {"alphabet": 7}),
        ("hyper_parameters", {"net": [1]}),
    ],
)
def test_settings_of_a_wrong_type_are_a_one_line_error(
    edited: Any, part: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(lambda contents: contents[part].update(values))
    with pytest.raises(SystemExit):
        predict(path)
    assert re.fullmatch(r"lit-gpt-scratch: error: [^\n]+\n", capsys.readouterr().err)


# Plugins


class Counting(BaseHTTPRequestHandler):
    """Serves a text and counts the requests."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"First, a word. " * 200)

    def log_message(self, *args: object) -> None:
        pass


def test_a_url_in_a_checkpoint_is_downloaded_only_with_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}/a"
        fitted = train_small(tmp_path, "--data.corpus", url)
        assert Counting.requests == 1
        path = fitted.folder / "checkpoints" / "last.ckpt"
        for command in ("validate", "predict"):  # they use the downloaded text
            main([command, "--ckpt_path", str(path)])
        shutil.rmtree(corpus.download_path(url).parent)
        main(["predict", "--ckpt_path", str(path)])  # predict needs no text
        for command in (["validate"], ["fit", "--trainer.max_steps", "9"]):
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main([*command, "--ckpt_path", str(path)])
            assert f"add --data.corpus {url}\n" in capsys.readouterr().err
        assert Counting.requests == 1
        main(["validate", "--ckpt_path", str(path), "--data.corpus", url])
        assert Counting.requests == 2
        server.shutdown()


def test_a_class_of_a_named_plugin_is_accepted(
    edited: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --plugin, the same file is refused."""
    (tmp_path / "lit_gpt_scratch_more.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = edited(
        lambda c: c["hyper_parameters"]["net"].update(class_path="lit_gpt_scratch_more.Mine")
    )
    assert_refused(path, "'lit_gpt_scratch_more.Mine', which is not part of lit_gpt_scratch")
    assert_refused(path, "'lit_gpt_scratch_more.Mine'", plugin="json")
    assert "lit_gpt_scratch_more" not in sys.modules
    model = inspection.load(path, plugin="lit_gpt_scratch_more")
    assert type(model.net).__name__ == "Mine"


def test_a_missing_plugin_is_refused() -> None:
    for call in (import_plugin, lambda plugin: inspection.load("any.ckpt", plugin)):
        with pytest.raises(InputError, match="--plugin no_such_module"):
            call("no_such_module")


# Finding


def test_best_and_last_are_those_of_the_newest_run(tmp_path: Path) -> None:
    """The newest by time, not by name or number."""
    old, new = (tmp_path / name for name in ("b/version_10", "a/version_9"))
    for age, run in enumerate([new, old]):
        for name in ("best", "last"):
            file = run / "checkpoints" / f"{name}.ckpt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.utime(file, (1e9 - age, 1e9 - age))
    for name in ("best", "last"):
        assert find_checkpoint(name, tmp_path) == new / "checkpoints" / f"{name}.ckpt"


def test_best_of_no_run_says_so(tmp_path: Path) -> None:
    for runs in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"--ckpt_path best: no run in .* Run fit first"):
            find_checkpoint("best", runs)


def test_anything_else_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/a.ckpt", tmp_path) == tmp_path / "a.ckpt"
    assert find_checkpoint("b/best", tmp_path) == Path("b/best")
