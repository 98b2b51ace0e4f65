"""Tests of exports: the exported model is identical, and invalid folders are refused."""

import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from laws import ALPHABET, CONFIGS, random_ids, small, train_small, with_random_weights
from malicious_pickles import RunsCommand
from peak_memory import peak_memory
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lit_gpt_scratch import cli, inspection
from lit_gpt_scratch.checkpoints import formats
from lit_gpt_scratch.cli import export_command as export
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.training.module import LitCharLM

Edit = Callable[[Path], Any]
Facts = dict[str, Any]
TEXT = "".join(ALPHABET[i] for i in random_ids(len(ALPHABET), 500))
PLUGIN = """
from lit_gpt_scratch.models import GPT
class Mine(GPT):
    pass
"""


class Exported(NamedTuple):
    model: LitCharLM
    loss: float
    checkpoint: Path
    folder: Path


def save_and_export(folder: Path, model: LitCharLM) -> Exported:
    """Save a checkpoint as `fit` does, but without training, and export it."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    data = CharDataModule(str(folder / "text.txt"), model.context, 4, 0.5, 0.2, alphabet=ALPHABET)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (metrics,) = trainer.validate(model, data, verbose=False)
    trainer.save_checkpoint(folder / "model.ckpt")
    export.export(folder / "model.ckpt", folder / "exported")
    paths = folder / "model.ckpt", folder / "exported"
    return Exported(model.eval(), metrics["val/loss"], *paths)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.stem)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a small model of every shipped config, with all weights randomized."""
    model = small(request.param)
    model.net = with_random_weights(model.net)
    return save_and_export(tmp_path_factory.mktemp("exported"), model)


def config(name: str) -> Path:
    return next(config for config in CONFIGS if config.stem == name)


@pytest.fixture(scope="module")
def gpt_export(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return save_and_export(tmp_path_factory.mktemp("gpt"), small(config("gpt_cpu")))


@pytest.fixture
def one(gpt_export: Exported, tmp_path: Path) -> Exported:
    """A copy of the GPT's checkpoint and export, which the test may change."""
    shutil.copy(gpt_export.checkpoint, tmp_path)
    shutil.copytree(gpt_export.folder, tmp_path / "exported")
    return gpt_export._replace(checkpoint=tmp_path / "model.ckpt", folder=tmp_path / "exported")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose best validation was not its last."""
    args = [
        "--trainer.val_check_interval=1",
        "--model.schedule=null",
        "--model.optimizer=lit_gpt_scratch.optim.AdamW",
    ]
    args += ["--model.optimizer.lr=10"]
    return train_small(tmp_path_factory.mktemp("fit"), *args, config=config("bigram")).folder


# What is written


@torch.no_grad()
def test_an_export_has_exactly_the_checkpoints_logits(exported: Exported) -> None:
    ids = random_ids(len(ALPHABET), 3, exported.model.context)
    for path in (exported.checkpoint, exported.folder):
        model = inspection.load(path)
        assert torch.equal(model(ids), exported.model(ids))
        assert model.tokenizer.alphabet == ALPHABET
        assert model.context == exported.model.context
        assert not model.training


def test_predict_and_validate_treat_an_export_like_its_checkpoint(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    """`predict` writes the checkpoint's text; `validate` gives the loss from before saving."""
    capsys.readouterr()
    path = ["--ckpt_path", str(exported.folder), "--trainer.accelerator", "cpu"]
    cli.main(["predict", *path, "--max_new_tokens", "20"])
    model = inspection.load(exported.checkpoint)
    prompt = model.tokenizer.encode(default_prompt(model.tokenizer))[None]
    (text,) = model.generate(prompt, SamplingSettings(max_new_tokens=20, temperature=0.8))
    assert capsys.readouterr().out == text + "\n"
    done = cli.main(["validate", *path, "--trainer.precision", "32-true"])
    assert float(done.trainer.callback_metrics["val/loss"]) == exported.loss
    assert f"{exported.folder} on" in capsys.readouterr().err


def test_the_test_command_treats_an_export_like_its_checkpoint(one: Exported) -> None:
    """`test` gives the checkpoint's loss, and flags override the folder's settings."""
    losses = []
    for path in (one.checkpoint, one.folder):
        ask = ["test", "--ckpt_path", str(path), "--data.batch_size", "3"]
        done = cli.main([*ask, "--trainer.accelerator", "cpu"])
        losses.append(float(done.trainer.callback_metrics["test/loss"]))
        assert done.datamodule.batch_size == 3
    assert losses[0] == losses[1] > 0


def test_an_export_holds_the_checkpoints_weights_and_settings(exported: Exported) -> None:
    """The folder holds nothing else, in plain safetensors and JSON."""
    assert {file.name for file in exported.folder.iterdir()} == {"model.safetensors", "config.json"}
    saved = torch.load(exported.checkpoint, weights_only=True)
    weights = load_file(exported.folder / "model.safetensors")
    assert weights.keys() == saved["state_dict"].keys()
    assert all(torch.equal(weights[name], w) for name, w in saved["state_dict"].items())
    facts = json.loads((exported.folder / "config.json").read_text("utf-8"))
    assert facts.pop("datamodule_hyper_parameters") == saved["datamodule_hyper_parameters"]
    assert saved["hyper_parameters"].pop("_instantiator")  # Lightning's own key
    assert facts.pop("hyper_parameters") == saved["hyper_parameters"]
    assert facts == {"format": "lit_gpt_scratch 1", "val_loss": None, "global_step": 0}


def test_only_the_export_of_best_has_a_loss(fitted: Path, tmp_path: Path) -> None:
    facts = {}
    for name in ("best", "last"):
        export.export(fitted / f"checkpoints/{name}.ckpt", tmp_path / name)
        facts[name] = json.loads((tmp_path / name / "config.json").read_text("utf-8"))
    measured = cli.main(["validate", "--ckpt_path", str(tmp_path / "best")])
    loss = float(measured.trainer.callback_metrics["val/loss"])
    assert facts["best"]["val_loss"] == pytest.approx(loss, abs=1e-5)
    assert facts["best"]["global_step"] < 4
    assert (facts["last"]["val_loss"], facts["last"]["global_step"]) == (None, 4)
    contents = torch.load(fitted / "checkpoints/best.ckpt", weights_only=True)
    torch.save(contents | {"callbacks": [1]}, tmp_path / "best.ckpt")
    export.export(tmp_path / "best.ckpt", tmp_path / "edited")
    assert json.loads((tmp_path / "edited/config.json").read_text("utf-8"))["val_loss"] is None


@torch.no_grad()
def test_tied_and_transposed_weights_are_exported(tmp_path: Path) -> None:
    model = small(config("gpt_cpu_classic"))
    model.net = net = with_random_weights(model.net)
    net.unembed[1].weight = net.embed.character.weight
    hidden = net.blocks[0].feed_forward.hidden.weight
    hidden.data = hidden.data.t().contiguous().t()
    tied = save_and_export(tmp_path, model)
    ids = random_ids(len(ALPHABET), 3, model.context)
    assert torch.equal(inspection.load(tied.folder)(ids), model(ids))


def test_a_failed_export_leaves_no_files(
    one: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "atomic_write", fail)
    with pytest.raises(InputError, match="other cannot be written: No space left"):
        export.export(one.checkpoint, tmp_path / "deep" / "other")
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_export_has_the_usual_permissions(one: Exported) -> None:
    (one.folder.parent / "new").mkdir()
    (one.folder.parent / "new/file").touch()
    export.export(one.checkpoint, one.folder.parent / "export")
    for name, usual in {"": "", "model.safetensors": "file", "config.json": "file"}.items():
        exported, ordinary = (
            one.folder.parent / f"export/{name}",
            one.folder.parent / f"new/{usual}",
        )
        assert exported.stat().st_mode == ordinary.stat().st_mode


def test_an_export_can_be_moved_and_renamed(one: Exported) -> None:
    """It may hold other files, and the checkpoint is not needed."""
    moved = one.folder.rename(one.folder.parent / "moved")
    one.checkpoint.unlink()
    (moved / "README.md").write_text("About this model", encoding="utf-8")
    ids = random_ids(len(ALPHABET), 8)[None]
    assert torch.equal(inspection.load(moved)(ids), one.model(ids))


# The command


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with a one-line error; return the line."""

    def refuse(main: Callable[[list[str]], Any], *args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert re.fullmatch(r"[^\n]+: error: [^\n]+\n", printed.err)
        return printed.err

    return refuse


def test_the_command_prints_the_size_and_the_next_command(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`best` and `last` mean the newest run's, as in the other commands."""
    monkeypatch.chdir(fitted.parents[2])
    capsys.readouterr()
    for name in ("best", "last"):
        export.main(["--ckpt_path", name, "--output", f"out/a {name}"])
        size, _, after = capsys.readouterr().out.splitlines()
        assert re.fullmatch(rf"out/a {name}  0\.0 MB", size)
        assert after == f"  lit-gpt-scratch predict --ckpt_path 'out/a {name}'"
        saved = torch.load(fitted / f"checkpoints/{name}.ckpt", weights_only=True)
        exported = inspection.load(f"out/a {name}").state_dict()
        assert all(torch.equal(exported[key], w) for key, w in saved["state_dict"].items())


def test_export_overwrites_nothing(one: Exported, tmp_path: Path, refusal: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = {path: path.stat() for path in tmp_path.rglob("*") if path.exists()}
    for name in ("exported", "text.txt", "model.ckpt", "empty"):
        printed = refusal(export.main, "--ckpt_path", one.checkpoint, "--output", tmp_path / name)
        assert f"{name} exists already: name a new folder" in printed
    for name in ("text.txt/sub", "dangling"):
        printed = refusal(export.main, "--ckpt_path", one.checkpoint, "--output", tmp_path / name)
        assert f"{name} cannot be written: " in printed
    after = {path: path.stat() for path in tmp_path.rglob("*") if path.exists()}
    assert {path: stat.st_mtime_ns for path, stat in after.items() if path.is_file()} == {
        path: stat.st_mtime_ns for path, stat in before.items() if path.is_file()
    }
    assert after.keys() == before.keys()


def test_wrong_arguments_are_one_line_errors(
    one: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = ("--output", "new", "--ckpt_path")
    assert "output" in refusal(export.main, "--ckpt_path", one.checkpoint)
    assert "ckpt_path" in refusal(export.main, "--output", "new")
    assert "no such file" in refusal(export.main, *ask, "none.ckpt")
    assert "no run in runs has a best.ckpt" in refusal(export.main, *ask, "best")
    assert "is a folder" in refusal(export.main, *ask, one.folder)
    assert "no_such_module" in refusal(
        export.main, *ask, one.checkpoint, "--plugin", "no_such_module"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["state_dict"].popitem(), "does not fit together"),
        (lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan), "not all finite"),
        (lambda c: c["datamodule_hyper_parameters"].update(extra=torch.ones(2)), "hold a tensor"),
        (lambda c: c["datamodule_hyper_parameters"].update(extra=float("inf")), "JSON"),
    ],
)
def test_an_invalid_checkpoint_is_not_exported(
    one: Exported, tmp_path: Path, refusal: Any, edit: Any, message: str
) -> None:
    contents = torch.load(one.checkpoint, weights_only=True)
    edit(contents)
    torch.save(contents, one.checkpoint)
    printed = refusal(export.main, "--ckpt_path", one.checkpoint, "--output", tmp_path / "new")
    assert message in printed
    assert not (tmp_path / "new").exists()


def test_fit_does_not_resume_from_an_export(one: Exported, tmp_path: Path, refusal: Any) -> None:
    (tmp_path / "fit.yaml").write_text(f"ckpt_path: {one.folder}\n", encoding="utf-8")
    for flags in (["--ckpt_path", one.folder], ["--config", tmp_path / "fit.yaml"]):
        printed = refusal(cli.main, "fit", *flags, "--trainer.default_root_dir", tmp_path)
        assert "is an export, without the optimizer's state" in printed
    assert not (tmp_path / "runs").exists()


# What is refused


def facts(edit: Callable[[Facts], Any]) -> Edit:
    """Return an edit of a folder's JSON."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text("utf-8"))
        edit(found)
        (folder / "config.json").write_text(json.dumps(found), "utf-8")

    return change


def model(**values: Any) -> Edit:
    return facts(lambda found: found["hyper_parameters"].update(values))


def net(**values: Any) -> Edit:
    return facts(lambda found: found["hyper_parameters"]["net"]["init_args"].update(values))


def data(**values: Any) -> Edit:
    return facts(lambda found: found["datamodule_hyper_parameters"].update(values))


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    """Return an edit of a folder's weights."""

    def change(folder: Path) -> None:
        found = {k: w.clone() for k, w in load_file(folder / "model.safetensors").items()}
        edit(found)
        save_file(found, folder / "model.safetensors")

    return change


def text(contents: bytes) -> Edit:
    return lambda folder: (folder / "config.json").write_bytes(contents)


def cut(part: float) -> Edit:
    def change(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(part * len(content))])

    return change


def header(size: int) -> Edit:
    """Claim a header of that size, in a weights file of 1 GiB."""

    def change(folder: Path) -> None:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", size))
            file.truncate(1 << 30)  # sparse

    return change


def long_header(folder: Path) -> None:
    """Save the same weights with a long header."""
    file = folder / "model.safetensors"
    found = {k: w.clone() for k, w in load_file(file).items()}
    save_file(found, file, {"long_header": "x" * (1 << 22)})


def link(name: str) -> Edit:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def set_weight(value: float) -> Edit:
    def change(found: dict[str, torch.Tensor]) -> None:
        next(iter(found.values())).view(-1)[7] = value

    return weights(change)


FOREIGN = "was not written by"
DAMAGED = "is damaged or not a checkpoint: export it again"
MISMATCH = "does not fit together|do not fit this network|too few weights|another version|must be"
REFUSED = "is refused: it"
DEEP = b'{"hyper_parameters": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
INVALID: dict[str, tuple[Edit, str]] = {
    "no JSON": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "is a folder"),
    "a link to JSON": (link("config.json"), "config.json is missing"),
    "a link to weights": (link("model.safetensors"), "model.safetensors is missing"),
    "an empty JSON": (text(b""), DAMAGED),
    "bytes for JSON": (text(b"\x80\xff\x00"), DAMAGED),
    "half a JSON": (text(b'{"format": "lit_gpt'), DAMAGED),
    "deep JSON": (text(DEEP), DAMAGED),
    "a large JSON": (text(b" " * (1 << 22) + b"{}"), DAMAGED),
    "a list": (text(b"[]"), FOREIGN),
    "another program's": (text(b'{"model_type": "gpt2"}'), FOREIGN),
    "another format": (
        facts(lambda f: f.update(format="lit_gpt_scratch 2")),
        "'lit_gpt_scratch 2'",
    ),
    "a list for a format": (facts(lambda f: f.update(format=["x\n"] * 99)), FOREIGN),
    "NaN": (net(dropout=float("nan")), DAMAGED),
    "no model": (facts(lambda f: f.pop("hyper_parameters")), FOREIGN),
    "a list for a model": (facts(lambda f: f.update(hyper_parameters=[1])), FOREIGN),
    "no net": (facts(lambda f: f["hyper_parameters"].pop("net")), FOREIGN),
    "a text for data": (facts(lambda f: f.update(datamodule_hyper_parameters="x")), FOREIGN),
    "no fraction": (facts(lambda f: f["datamodule_hyper_parameters"].pop("val_fraction")), FOREIGN),
    "a text for a step": (facts(lambda f: f.update(global_step="x")), "not a whole number"),
    "another's class": (model(net={"class_path": "os.system"}), "names 'os.system'"),
    "an instantiator": (model(_instantiator="os.system"), "names code of its own"),
    "a class of models": (model(_class_path="os.system"), "names code of its own"),
    "an unknown setting": (model(of_tomorrow=1), MISMATCH),
    "an unknown size": (net(of_tomorrow=1), MISMATCH),
    "a text for a width": (net(width="wide"), REFUSED),
    "a list for a net": (model(net=[1, 2]), "is refused: its net"),
    "a number for an alphabet": (model(alphabet=7), MISMATCH),
    "a deep net": (net(layers=json.loads("[" * 500 + "]" * 500)), REFUSED),
    "an absurd width": (net(width=1 << 12), MISMATCH),
    "a width beyond all memory": (net(width=1 << 40), MISMATCH),
    "a width beyond all numbers": (net(width=10**30), REFUSED),
    "absurdly many layers": (net(layers=10**12), MISMATCH),
    "another width": (net(width=64), MISMATCH),
    "another alphabet": (model(alphabet="abc"), MISMATCH),
    "no weight": (weights(lambda found: found.popitem()), MISMATCH),
    "a weight more": (weights(lambda found: found.update(x=torch.ones(2))), MISMATCH),
    "another shape": (weights(lambda f: f.update({min(f): torch.ones(2, 2)})), MISMATCH),
    "a weight of NaN": (set_weight(torch.nan), "not all finite"),
    "an infinite weight": (set_weight(-torch.inf), "not all finite"),
    "a long header": (header(1 << 40), DAMAGED),
    "a rather long header": (long_header, DAMAGED),
    "a header of zeros": (header(1 << 26), DAMAGED),
    "an empty header": (header(0), DAMAGED),
    **{f"{part} of the weights": (cut(part), DAMAGED) for part in (0.0, 0.001, 0.5, 0.9999)},
}
# Invalid data settings: only commands that read the data refuse them.
INVALID_DATA: dict[str, Edit] = {
    "a number for an alphabet": data(alphabet=7),
    "no alphabet": data(alphabet=""),
    "a text for a context": data(context="long"),
    "no context": data(context=0),
    "a list for a corpus": data(corpus=["x"]),
    "a null for a batch": data(batch_size=None),
    "an unknown setting": data(of_tomorrow=1),
}
# Only `load` reads the model's own alphabet; commands take the data's.
LOAD_ONLY = {"another alphabet", "a number for an alphabet"}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_folder_is_refused_in_one_line(one: Exported, refusal: Any, case: str) -> None:
    """By `load` and by commands, without allocating much more than the folder's size."""
    edit, message = INVALID[case]
    edit(one.folder)
    before = peak_memory()
    with pytest.raises(InputError, match=message) as error:
        inspection.load(one.folder)
    assert str(one.folder) in str(error.value)
    assert len(str(error.value)) < 600
    if case not in LOAD_ONLY:
        assert re.search(message, refusal(cli.main, "predict", "--ckpt_path", one.folder))
    grown = peak_memory() - before
    assert grown < 300_000, f"{grown} KiB more"


@pytest.mark.parametrize("case", INVALID_DATA)
def test_invalid_data_settings_are_refused_in_one_line(
    one: Exported, refusal: Any, case: str
) -> None:
    INVALID_DATA[case](one.folder)
    assert "error" in refusal(cli.main, "validate", "--ckpt_path", one.folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.ckpt", ".metadata"])
def test_pickled_code_in_a_folder_is_never_run(one: Exported, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (one.folder / name).write_bytes(pickle.dumps(RunsCommand(marker)))
    if name in ("model.ckpt", ".metadata"):  # not read
        inspection.load(one.folder)
    else:
        with pytest.raises(InputError, match="damaged"):
            inspection.load(one.folder)
    assert not marker.exists()
    pickle.loads((one.folder / name).read_bytes())
    assert marker.exists(), "the gadget is harmless, so this test shows nothing"


def test_a_plugin_class_needs_the_plugin_flag(
    one: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    """Both for exporting and for reading the export."""
    (tmp_path / "exported_more.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    contents = torch.load(one.checkpoint, weights_only=True)
    contents["hyper_parameters"]["net"]["class_path"] = "exported_more.Mine"
    contents["state_dict"] = small(config("gpt_cpu_classic")).state_dict()
    torch.save(contents, one.checkpoint)
    ask = ["--ckpt_path", str(one.checkpoint), "--output", str(tmp_path / "mine")]
    assert "--plugin" in refusal(export.main, *ask)
    export.main([*ask, "--plugin", "exported_more"])
    assert "--plugin" in refusal(cli.main, "predict", "--ckpt_path", ask[3])
    assert type(inspection.load(ask[3], "exported_more").net).__name__ == "Mine"


def test_an_export_holds_only_weights(one: Exported) -> None:
    """No optimizer state, no callbacks, no metadata."""
    with safe_open(one.folder / "model.safetensors", "pt") as found:
        assert set(found.keys()) == set(one.model.state_dict())
        assert not found.metadata()
