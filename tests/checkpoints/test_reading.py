"""Tests of reading checkpoints: valid files load exactly, invalid and hostile ones are refused."""

import os
import pickle
import re
import resource
import shutil
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import random_ids, train_small
from malicious_pickles import GADGETS, RunsCommand

from lit_gpt_scratch import inspection
from lit_gpt_scratch.checkpoints.reading import import_plugin, read_checkpoint
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.folder import find_checkpoint

LIGHTNING = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "hyper_parameters": {"lr": 1}}
PLUGIN = """
from lit_gpt_scratch.models import GPT
class Mine(GPT):
    pass
"""


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> CharCLI:
    """A run of `fit` with a GPT whose parts are all nested classes."""
    flags = ["--model.net=GPT", "--model.net.layers=2", "--model.net.width=16"]
    flags += ["--model.net.attention.heads=2"]
    return train_small(tmp_path_factory.mktemp("fit"), *flags)


@pytest.fixture
def path(fit: CharCLI, tmp_path: Path) -> Path:
    """A copy of the run's last checkpoint in another folder."""
    return Path(shutil.copy(fit.folder / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt"))


@pytest.fixture
def edited(path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Return a function that edits the checkpoint's contents and saves it again."""

    def write(edit: Callable[[dict[str, Any]], Any]) -> Path:
        contents = torch.load(path, weights_only=True)
        edit(contents)
        torch.save(contents, path)
        return path

    return write


# What is written


def plain(value: Any) -> bool:
    """Return whether a nested value is plain data."""
    if isinstance(value, dict):
        return all(plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_is_plain_data(fit: CharCLI, name: str) -> None:
    contents = torch.load(fit.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert plain(contents)
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


def refused(path: Path, message: str, plugin: str | None = None) -> None:
    """Check that reading and loading fail with one line that names the file."""
    for read in (read_checkpoint, inspection.load):
        with pytest.raises(InputError, match=message) as error:
            read(path, plugin)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.ckpt", "no such file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")


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
    refused(path, "was not written by lit_gpt_scratch")


@pytest.mark.parametrize("contents", [b"", b"x", b"PK", b"PK\3\4", b"hello\n" * 1000, bytes(5000)])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_bytes(contents)
    refused(path, "not a checkpoint|pickled code")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(path: Path, part: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(path, "damaged|not a checkpoint")


@pytest.mark.parametrize("missing", [1, 22, 100])
def test_a_file_without_its_last_bytes_is_refused(path: Path, missing: int) -> None:
    path.write_bytes(path.read_bytes()[:-missing])
    refused(path, "damaged|not a checkpoint")


@pytest.mark.parametrize("at", [0, 1, 2, 3, -22, -21, -20, -19])
def test_a_flipped_bit_in_the_archives_signature_is_refused(path: Path, at: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 4
    path.write_bytes(damaged)
    refused(path, "damaged|not a checkpoint")


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
    assert plain(contents)


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "alone", "raw"])
def test_pickled_code_is_refused_and_never_run(
    path: Path, tmp_path: Path, gadget: type[RunsCommand], place: str
) -> None:
    """In any part of a valid checkpoint, as a file's only object, and as a bare pickle."""
    marker = tmp_path / "marker"
    contents: Any = gadget(marker)
    if place not in ("alone", "raw"):
        contents = torch.load(path, weights_only=True)
        contents[place]["gadget"] = gadget(marker)
    if place == "raw":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path)
    refused(path, "is refused: it holds pickled code")
    assert not marker.exists()
    if place == "raw":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the gadget is harmless, so this test shows nothing"


# Class paths

HARMFUL = [
    "os.system",
    "torch.nn.Linear",
    "lit_gpt_scratchy.models.GPT",
    "lit_gpt_scratch",
    # In the package's namespace, but defined elsewhere.
    "lit_gpt_scratch.data.corpus.os.system",
    "lit_gpt_scratch.models.nn.Linear",
    "lit_gpt_scratch.files.shutil.rmtree",
    "lit_gpt_scratch.checkpoints.reading.Path",
    # In the package, but not a class.
    "lit_gpt_scratch.checkpoints.reading.import_plugin",
]


def predict(path: Path) -> None:
    main(["predict", "--ckpt_path", str(path), "--max_new_tokens", "5"])


def spec(class_path: str) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": {}}


@pytest.mark.parametrize("class_path", HARMFUL)
@pytest.mark.parametrize("place", ["net", "attention", "optimizer", "schedule"])
def test_a_class_from_elsewhere_is_refused(edited: Any, place: str, class_path: str) -> None:
    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = spec(class_path)

    refused(edited(edit), "which is not part of lit_gpt_scratch")


@pytest.mark.parametrize(
    "disguise",
    [
        "os.system",
        "torch.nn.Linear",
        '{"class_path": "os.system", "init_args": {"command": "echo"}}',
        "class_path: os.system",
    ],
)
@pytest.mark.parametrize("place", ["net", "attention", "optimizer", "schedule"])
def test_a_text_in_place_of_a_class_is_refused(edited: Any, place: str, disguise: str) -> None:
    """jsonargparse would read a text as a class path or as YAML."""

    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = disguise

    refused(edited(edit), "refused|not part of lit_gpt_scratch")


def test_a_class_in_a_list_is_refused(edited: Any) -> None:
    more = [[spec("os.system")]]
    path = edited(lambda c: c["hyper_parameters"]["net"]["init_args"].update(more=more))
    refused(path, "'os.system', which is not part of lit_gpt_scratch")


@pytest.mark.parametrize("read", [inspection.load, predict])
@pytest.mark.parametrize("place", ["net", "optimizer", "schedule"])
def test_a_command_named_in_a_checkpoint_is_never_run(
    edited: Any, tmp_path: Path, place: str, read: Callable[[Path], Any]
) -> None:
    """A module of the package imports `os`, so this class path begins with the package's name."""
    marker = tmp_path / "marker"
    arguments = {"command": f"echo run > {marker}"}
    call = {"class_path": "lit_gpt_scratch.data.corpus.os.system", "init_args": arguments}
    path = edited(lambda contents: contents["hyper_parameters"].update({place: call}))
    with pytest.raises((InputError, SystemExit)):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", ["os.system", "lightning.pytorch.cli.instantiate_class", 7])
def test_another_instantiator_is_refused(edited: Any, part: str, value: Any) -> None:
    path = edited(lambda contents: contents[part].update(_instantiator=value))
    refused(path, "is refused: it names code of its own")


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", ["os.system", "lit_gpt_scratch.training.module.LitCharLM"])
def test_another_module_class_is_refused(edited: Any, part: str, value: str) -> None:
    """Lightning would build the class that `_class_path` names instead of LitCharLM."""
    path = edited(lambda contents: contents[part].update(_class_path=value))
    refused(path, "is refused: it names code of its own")


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


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([torch.inf]),
        "a text",
        None,
    ],
    ids=["NaN", "infinity", "a text", "nothing"],
)
def test_weights_that_are_not_finite_numbers_are_refused(edited: Any, weight: Any) -> None:
    path = edited(lambda contents: contents["state_dict"].update({"net.x": weight}))
    refused(path, "not all finite")


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)
SHARED: list[Any] = []
for _ in range(60):
    SHARED = [SHARED, SHARED]
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
NOT_PLAIN = {
    "a tensor of more numbers than the file has bytes": torch.ones(1).expand(1 << 14, 1 << 14),
    "a tensor without memory": torch.ones(2, device="meta"),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a list in itself": RECURSIVE,
    "a list that unfolds to 2**60": SHARED,
    "a deep list": DEEP,
    "a key of tuples": {((1, 2), 3): 4},
    "bytes": b"bytes",
    "a set": {1, 2},
    "a huge number": 1 << 63,
    "a class": torch.nn.Linear,
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
@pytest.mark.parametrize(
    "place", ["state_dict", "hyper_parameters", "callbacks", "loops", "unlogged"]
)
def test_values_that_are_not_plain_data_are_refused_in_every_part(
    edited: Any, place: str, value: Any
) -> None:
    def edit(contents: dict[str, Any]) -> None:
        if place == "unlogged":
            contents[place] = value
        else:
            contents[place]["x"] = value

    refused(edited(edit), "is refused: it")


def rezip(path: Path, **how: Any) -> None:
    """Write an archive's records anew."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **how) as new:
        for name, record in records.items():
            new.writestr(name, record)


def test_a_rewritten_archive_is_accepted(path: Path) -> None:
    rezip(path)
    read_checkpoint(path)


def test_compressed_records_are_refused(path: Path) -> None:
    """A megabyte could unpack to a gigabyte."""
    rezip(path, compression=zipfile.ZIP_DEFLATED)
    refused(path, "damaged")


def test_two_records_of_one_name_are_refused(path: Path) -> None:
    """Two readers could read different ones."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.pkl", b"")
    refused(path, "damaged")


def test_older_file_formats_are_refused(path: Path, fit: CharCLI) -> None:
    """PyTorch reads legacy files and tar archives with other code."""
    contents = torch.load(path, weights_only=True)
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    refused(path, "not a checkpoint")
    with tarfile.open(path, "w") as archive:
        archive.add(fit.folder / "config.yaml", "pickle")
    refused(path, "not a checkpoint")


@pytest.mark.parametrize("kind", ["momentum_buffer", "exp_avg"])
def test_a_flipped_bit_in_a_number_is_refused(path: Path, kind: str) -> None:
    """PyTorch does not compare the archive's checksums."""
    states = torch.load(path, weights_only=True)["optimizer_states"][0]["state"].values()
    number = next(state[kind] for state in states if kind in state)
    damaged = path.read_bytes()
    at = damaged.index(number.numpy().tobytes())
    path.write_bytes(damaged[:at] + bytes([damaged[at] ^ 1]) + damaged[at + 1 :])
    refused(path, "damaged")


def run_loops(contents: dict[str, Any], **values: Any) -> None:
    loops = contents["loops"]["fit_loop"]
    loops["epoch_loop.batch_progress"]["total"].update(values)


@pytest.mark.parametrize("value", [-1, "6", 1.5, None, torch.ones(1), 1 << 62])
def test_loop_states_that_are_not_counts_are_refused(edited: Any, value: Any) -> None:
    """Otherwise training could continue at another step, or never end."""
    refused(edited(lambda c: run_loops(c, ready=value)), "loops hold more than counts")


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_global_step_that_differs_from_the_loops_is_refused(edited: Any, step: int) -> None:
    refused(edited(lambda c: c.update(global_step=step)), "its loops are not at its global_step")


@pytest.mark.parametrize(
    "other", ["runs/../notes.txt", "s3://bucket/key", "simplecache::/notes.txt", "data:text"]
)
def test_a_callback_state_that_names_another_file_is_refused(edited: Any, other: str) -> None:
    """Lightning's ModelCheckpoint deletes the files that its state names."""

    def edit(contents: dict[str, Any]) -> None:
        for name, state in contents["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                state["best_model_path"] = other

    refused(edited(edit), "it names files outside its run")


def test_a_callback_state_may_hold_a_long_tensor(edited: Any) -> None:
    """The text of a long tensor contains `...`, which must not be taken for a parent folder."""
    kept = torch.arange(5000.0)
    path = edited(lambda c: c["callbacks"].update(Mine={"seen": kept}))
    assert torch.equal(read_checkpoint(path)["callbacks"]["Mine"]["seen"], kept)


@pytest.mark.parametrize("value", [None, 1.5, ["x"]])
def test_a_callback_path_that_is_not_text_is_refused(edited: Any, value: Any) -> None:
    def edit(contents: dict[str, Any]) -> None:
        for state in contents["callbacks"].values():
            if "best_model_path" in state:
                state["best_model_path"] = value

    refused(edited(edit), "path that is not text")


@pytest.mark.parametrize("name", ["net", "optimizer", "_instantiator"])
@pytest.mark.parametrize("value", [torch.ones(0), torch.ones(3)], ids=["empty", "full"])
def test_a_tensor_in_the_settings_is_refused(edited: Any, name: str, value: Any) -> None:
    refused(edited(lambda c: c["hyper_parameters"].update({name: value})), "it has tensors")


@pytest.mark.parametrize("place", ["net", "optimizer", "schedule", "attention"])
def test_a_word_that_is_also_a_file_name_is_refused(
    edited: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jsonargparse would read the file as a config, which can name any class."""
    monkeypatch.chdir(tmp_path)
    Path("planted").write_text("class_path: os.system\ninit_args:\n  command: echo")

    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = "planted"

    path = edited(edit)
    refused(path, "is refused")
    refused(path, "is refused", plugin="json")


def test_a_global_step_that_is_not_a_number_is_refused(edited: Any) -> None:
    path = edited(lambda contents: contents.update(global_step=[1]))
    refused(path, "global_step is not a whole number")


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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((InputError, SystemExit)) as error:
        read(path)
    printed = str(error.value) + capsys.readouterr().err
    assert "too few weights for this network" in printed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


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
    (tmp_path / "lit_gpt_scratch_more.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    path = edited(
        lambda c: c["hyper_parameters"]["net"].update(class_path="lit_gpt_scratch_more.Mine")
    )
    refused(path, "'lit_gpt_scratch_more.Mine', which is not part of lit_gpt_scratch")
    refused(path, "'lit_gpt_scratch_more.Mine'", plugin="json")
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
        with pytest.raises(InputError, match=r"ckpt_path best: no run under .* Run fit first"):
            find_checkpoint("best", runs)


def test_anything_else_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/a.ckpt", tmp_path) == tmp_path / "a.ckpt"
    assert find_checkpoint("b/best", tmp_path) == Path("b/best")
