"""A run that is stopped and goes on ends as though nothing had happened."""

import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from compare_runs import last, same, state, tables
from laws import train_small

from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.folder import check_whole, folder_to_go_on_in, hold
from lit_gpt_scratch.runs.metrics_logger import MetricsCSV, cut_after
from lit_gpt_scratch.training import checkpointing as saving

# All that has a state: dropout, accumulation, averaged weights; rows and validations out of step.
EVERYTHING = [
    "--model.net.dropout=0.2", "--model.net.layers=2", "--model.net.width=32",
    "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=12",
    "--trainer.log_every_n_steps=3", "--trainer.val_check_interval=8",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.8",
]  # fmt: skip


class Ask(pl.Callback):
    """Sends this process a signal in the middle of a batch."""

    batch, number = -1, signal.SIGTERM

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == Ask.batch:
            os.kill(os.getpid(), Ask.number)


@pytest.fixture(autouse=True)
def _no_more_signals() -> Iterator[None]:
    yield
    Ask.batch = -1


def train(root: Path, *args: str) -> CharCLI:
    return train_small(root, *EVERYTHING, "--trainer.callbacks+=test_checkpointing.Ask", *args)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    return train(tmp_path_factory.mktemp("whole")).folder


@pytest.mark.parametrize("batches", [[0], [1], [7], [8], [15], [23], [3, 6, 11, 16, 19]], ids=str)
def test_a_run_that_is_stopped_and_goes_on_is_the_same_run(
    batches: list[int], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever: at a boundary, within an accumulation, at a validation's step, at the last."""
    more: list[str] = []
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    for batch in batches:
        Ask.batch = batch
        if batch >= 22:  # at the last step there is nothing left to stop
            train(tmp_path, *more)
            break
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, *more)
        assert stop.value.code == 128 + signal.SIGTERM
        assert f"--ckpt_path {last(folder)}" in capsys.readouterr().err
        more = [f"--ckpt_path={last(folder)}"]
    Ask.batch = -1
    if torch.load(last(folder), weights_only=True)["global_step"] < 12:
        train(tmp_path, *more)
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert tables(folder) == tables(whole)
    assert same(state(folder), state(whole))
    assert len(list(folder.glob("attention/*.png"))) == len(list(whole.glob("attention/*.png")))


def test_what_was_logged_after_the_checkpoint_is_logged_anew(whole: Path, tmp_path: Path) -> None:
    """Also from an earlier one, of a run that went on to its end."""
    Ask.batch = 7
    with pytest.raises(SystemExit):
        train(tmp_path)
    Ask.batch = -1
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    early = shutil.copy(last(folder), last(folder).with_name("early.ckpt"))
    for checkpoint in (last(folder), early):
        assert train(tmp_path, f"--ckpt_path={checkpoint}").folder == folder
        assert tables(folder) == tables(whole)
        assert same(state(folder), state(whole))


def test_a_checkpoint_elsewhere_begins_a_new_folder(whole: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.ckpt"
    elsewhere.write_bytes(last(whole).read_bytes())
    before = tables(whole)
    run = train(tmp_path, f"--ckpt_path={elsewhere}", "--trainer.max_steps=14")
    assert run.folder != whole
    assert tables(whole) == before
    other = train(tmp_path, f"--ckpt_path={last(whole)}", "--trainer.max_steps=14", "--name=other")
    assert other.folder.parent.name == "other"
    assert tables(whole) == before


def test_minutes_pass_and_a_checkpoint_is_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps, and the run is the same for it."""
    monkeypatch.setattr(saving.SignalCheckpoint.__init__, "__defaults__", (0.0,))
    steps: list[int] = []
    save = saving.SignalCheckpoint.save

    def note(saver: saving.SignalCheckpoint, trainer: Any) -> None:
        save(saver, trainer)
        steps.append(torch.load(saver.path, weights_only=True)["global_step"])

    monkeypatch.setattr(saving.SignalCheckpoint, "save", note)
    folder = train(tmp_path).folder
    assert steps == [*range(12)]
    assert tables(folder) == tables(whole)
    assert same(state(folder), state(whole))


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    saver = saving.SignalCheckpoint(tmp_path / "last.ckpt")
    saver._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        saver._note(signal.SIGINT, None)
    saver = saving.SignalCheckpoint(tmp_path / "last.ckpt")
    for _ in range(3):
        saver._note(signal.SIGTERM, None)


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_is_whole(tmp_path: Path) -> None:
    """The file may not grow beyond what there is room for."""
    io, path = saving.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"weights": torch.arange(10)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be saved .*the one before it is complete"):
            io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(10))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_disk_that_may_not_be_written_is_one_line_for_every_file_of_a_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, a picture, the config: a folder is in the place of each."""
    for name in ("samples.csv", "attention", "config.yaml"):
        folder = tmp_path / name / "runs" / "gpt_cpu" / "version_0"
        shutil.copytree(whole, folder)
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
            (folder / name).touch()
        else:
            (folder / name).unlink()
            (folder / name).mkdir()
        with pytest.raises(SystemExit) as stop:
            train(tmp_path / name, f"--ckpt_path={last(folder)}", "--trainer.max_steps=16")
        assert stop.value.code == 2
        assert f"{folder / name}" in capsys.readouterr().err


def test_rows_that_cannot_come_back_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of before the checkpoint; not those after it, and not in a folder of another run."""
    more = "--trainer.log_every_n_steps=1"
    folder = train_small(tmp_path, more).folder
    with (folder / "metrics.csv").open("a") as file:
        file.write("99,")
    train_small(tmp_path, more, f"--ckpt_path={last(folder)}", "--trainer.max_steps=5")
    train_small(tmp_path, f"--ckpt_path={last(folder)}", "--trainer.max_steps=6", "--name=other")
    assert "lacks rows" not in capsys.readouterr().err
    rows = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(rows[:-1]))
    train_small(tmp_path, more, f"--ckpt_path={last(folder)}", "--trainer.max_steps=7")
    assert "Notice: metrics.csv lacks rows" in capsys.readouterr().err


def test_half_a_config_is_refused_and_none_is_written_anew(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the defaults in its other half's place, the run would go on otherwise."""
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    shutil.copytree(whole, folder)
    config = folder / "config.yaml"
    text = config.read_text()
    flags = [f"--ckpt_path={last(folder)}", "--trainer.max_steps=13"]
    for half in (text[: text.index("trainer:")], text[: text.index("wandb:")], text[:-2]):
        config.write_text(half)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, f"--config={config}", *flags)
        assert stop.value.code == 2
        assert "config" in capsys.readouterr().err
    config.unlink()
    assert train(tmp_path, *flags).folder == folder
    assert config.read_text().count("\n") == text.count("\n")


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_small(tmp_path, "--trainer.log_every_n_steps=1").folder
    with pytest.raises(SystemExit) as stop:
        train_small(
            tmp_path, "--trainer.log_every_n_steps=1", "--trainer.max_steps=40",
            f"--ckpt_path={last(folder)}", "--model.optimizer.lr=1e38", "--model.schedule=null",
        )  # fmt: skip
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.search(
        r"the training loss is \S+, 1 batches before step .*: lower --model.optimizer.lr", said
    )
    assert f"--ckpt_path {last(folder)}" in said
    weights = torch.load(last(folder), weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize(
    ("validations", "minutes", "said_of"),
    [(1, 5.0, "logits"), (2, 5.0, "the validation loss is"), (50, 0.0, "not all weights")],
    ids=["at a sample", "at a validation", "between two of them"],
)
def test_the_step_that_ends_all_numbers_spoils_no_checkpoint(
    validations: int, minutes: float, said_of: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its own loss is still one: its weights are not."""
    folder = train_small(tmp_path).folder
    kept = {path.name: path.read_bytes() for path in last(folder).parent.iterdir()}
    monkeypatch.setattr(saving.SignalCheckpoint.__init__, "__defaults__", (minutes,))
    often = [f"--trainer.val_check_interval={validations}"]
    with pytest.raises(SystemExit) as stop:
        train_small(
            tmp_path, *often, "--trainer.max_steps=40", f"--ckpt_path={last(folder)}",
            "--model.optimizer.lr=1e38", "--model.optimizer.adamw_lr=1e38",
            "--model.schedule=null",
        )  # fmt: skip
    said = capsys.readouterr().err
    assert stop.value.code == 2
    found = {path.name: path.read_bytes() for path in last(folder).parent.iterdir()}
    assert found["best.ckpt"] == kept["best.ckpt"]
    weights = torch.load(last(folder), weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())
    assert re.search(f"error: .*{said_of}.* lower --model.optimizer.lr", said)
    assert f"--ckpt_path {last(folder)}" in said


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    held = hold(tmp_path)
    with pytest.raises(InputError, match="is being trained by another process"):
        hold(tmp_path)
    os.close(held)
    os.close(hold(tmp_path))


def test_a_run_that_somebody_is_at_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing in its folder is touched."""
    folder = train_small(tmp_path).folder
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    held = hold(folder)
    longer = [f"--ckpt_path={last(folder)}", "--trainer.max_steps=6"]
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path, *longer)
    assert stop.value.code == 2
    assert "is being trained by another process" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    os.close(held)
    assert train_small(tmp_path, *longer).folder == folder


@pytest.mark.parametrize(
    ("place", "name", "inside"),
    [
        ("runs/a/version_0/checkpoints", None, True),
        ("runs/a/version_0/checkpoints", "a", True),
        ("runs/a/version_0/checkpoints", "b", False),
        ("runs/a/version_0/kept", None, False),
        ("elsewhere/checkpoints", None, False),
    ],
)
def test_a_run_goes_on_in_its_own_folder_alone(
    place: str, name: str | None, inside: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "a" / "version_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    checkpoint = tmp_path / place / "last.ckpt"
    assert folder_to_go_on_in(checkpoint, name) == (folder if inside else None)


def test_a_run_that_was_left_is_pointed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ask.batch, Ask.number = 10, signal.SIGTERM
    with pytest.raises(SystemExit):
        train(tmp_path)
    Ask.batch = -1
    capsys.readouterr()
    train(tmp_path)
    said = capsys.readouterr().err
    assert "version_0 is not finished" in said
    train(tmp_path)
    assert "is not finished" not in capsys.readouterr().err


# The log


def test_rows_are_appended_and_columns_join_as_they_come(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 1.5}, 2)
    logger.log_metrics({"val/loss": 2.5}, 2)
    MetricsCSV(tmp_path).log_metrics({"train/loss": 0.5}, 4)
    assert (tmp_path / "metrics.csv").read_bytes().decode().splitlines() == [
        "step,train/loss,val/loss", "2,1.5,", "2,,2.5", "4,0.5,",
    ]  # fmt: skip


def test_what_came_after_a_step_is_cut_off(tmp_path: Path) -> None:
    """And a row that a killed process left torn."""
    text = 'step,prompt,text\n1,a,"two\nlines"\n2,b,"a ""quoted"" one"\n3,c,later\n3,d,"to'
    (tmp_path / "samples.csv").write_text(text, newline="")
    (tmp_path / "attention").mkdir()
    for step in (2, 3):
        (tmp_path / "attention" / f"step_{step:06}.png").touch()
    left = tmp_path / "checkpoints" / ".last.ckpt-abcdefgh.partial"
    left.mkdir(parents=True)
    (left / "last.ckpt").touch()
    cut_after(tmp_path, 2)
    assert not left.exists()
    assert (tmp_path / "samples.csv").read_bytes().decode().replace("\r", "") == text[
        : text.index("3,c")
    ]
    assert [path.name for path in (tmp_path / "attention").iterdir()] == ["step_000002.png"]


def test_no_beginning_of_a_runs_config_is_taken_for_the_whole(whole: Path, tmp_path: Path) -> None:
    """A disk that was full, say, cut it: the rest would be the defaults of another run."""
    text = (whole / "config.yaml").read_text()
    torn = tmp_path / "config.yaml"
    (tmp_path / "checkpoints").mkdir()
    for end in {*range(0, len(text), 7), *(m.end() for m in re.finditer("\n", text[:-1]))}:
        torn.write_text(text[:end])
        with pytest.raises((InputError, yaml.YAMLError)):  # the parser says the latter before
            check_whole(torn)
    torn.write_text(text)
    check_whole(torn)
    elsewhere = tmp_path / "mine" / "config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("data:\n  context: 8\n")
    check_whole(elsewhere)
