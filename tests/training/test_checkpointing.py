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
from compare_runs import last, same, state, tables
from laws import train_small

from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.errors import InputError
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
