"""Saving and resuming: a resumed run equals an uninterrupted one."""

import errno
import os
import re
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


class SendSignal(pl.Callback):
    """Sends a signal to this process in the middle of a batch."""

    batch, number = -1, signal.SIGTERM

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == SendSignal.batch:
            signal.raise_signal(SendSignal.number)


LARGE_STEPS = [
    "--model.optimizer.lr=1e38", "--model.optimizer.adamw_lr=1e38", "--model.schedule=null"
]  # fmt: skip


class BreakWeights(pl.Callback):
    """Makes weights infinite after step 5, as a step that is too large does."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            next(pl_module.net.parameters()).data.fill_(torch.inf)


@pytest.fixture(autouse=True)
def _no_more_signals() -> Iterator[None]:
    yield
    SendSignal.batch = -1


def train(root: Path, *args: str) -> CharCLI:
    return train_small(
        root, *EVERYTHING, "--trainer.callbacks+=test_checkpointing.SendSignal", *args
    )


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    return train(tmp_path_factory.mktemp("complete")).folder


@pytest.mark.parametrize("batches", [[0], [1], [7], [8], [15], [23], [3, 6, 11, 16, 19]], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(
    batches: list[int], complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped between two steps, within an accumulation, at a validation, or at the last step."""
    more: list[str] = []
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    for batch in batches:
        SendSignal.batch = batch
        if batch >= 22:  # at the last step there is nothing left to stop
            train(tmp_path, *more)
            break
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, *more)
        assert stop.value.code == 128 + signal.SIGTERM
        assert f"--ckpt_path {last(folder)}" in capsys.readouterr().err
        more = [f"--ckpt_path={last(folder)}"]
    SendSignal.batch = -1
    if torch.load(last(folder), weights_only=True)["global_step"] < 12:
        train(tmp_path, *more)
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert tables(folder) == tables(complete)
    assert same(state(folder), state(complete))
    assert len(list(folder.glob("attention/*.png"))) == len(list(complete.glob("attention/*.png")))


def test_rows_after_the_checkpoint_are_logged_again(complete: Path, tmp_path: Path) -> None:
    """Also when a finished run resumes from an earlier checkpoint."""
    SendSignal.batch = 7
    with pytest.raises(SystemExit):
        train(tmp_path)
    SendSignal.batch = -1
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    early = shutil.copy(last(folder), last(folder).with_name("early.ckpt"))
    for checkpoint in (last(folder), early):
        assert train(tmp_path, f"--ckpt_path={checkpoint}").folder == folder
        assert tables(folder) == tables(complete)
        assert same(state(folder), state(complete))


class CopyCheckpoints(pl.Callback):
    """Copies both checkpoints of the validation after step 4, before another one replaces them."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        best = saving.best_checkpoint(trainer)
        if best and trainer.global_step == 4:
            for name in ("best", "last"):
                shutil.copy(best.path.with_stem(name), best.path.with_stem(f"copy of {name}"))


@pytest.fixture(params=["linked", "written twice"])
def saved_twice(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The checkpoints of a run with both names for its best step, on a disk with or without links.

    Copies of the checkpoints of step 4, which was the best until then, are beside them.
    """

    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "written twice":
        monkeypatch.setattr(os, "link", unsupported)
    copy = "--trainer.callbacks+=test_checkpointing.CopyCheckpoints"
    folder = last(train(tmp_path, copy).folder).parent
    best, newest = folder / "best.ckpt", folder / "last.ckpt"
    assert best.samefile(newest) == (request.param == "linked")
    return folder


def test_both_checkpoints_of_the_best_step_are_complete(saved_twice: Path, complete: Path) -> None:
    """They differ in nothing but the state that the writer of last.ckpt does not use again."""
    for names in (("best", "last"), ("copy of best", "copy of last")):
        best, newest = (
            torch.load(saved_twice / f"{name}.ckpt", weights_only=True) for name in names
        )
        for checkpoint in (best, newest):
            unused = checkpoint["callbacks"].pop("RunCheckpoint: last")
            writer = saving.RunCheckpoint(saved_twice, "last")
            before = writer.state_dict()
            writer.load_state_dict(unused)
            assert writer.state_dict() == before
        assert same(best, newest)
    assert same(state(saved_twice.parent), state(complete))


@pytest.mark.parametrize("name", ["copy of best", "copy of last"])
def test_a_run_resumes_from_either_checkpoint_of_the_best_step(
    name: str, saved_twice: Path, complete: Path, tmp_path: Path
) -> None:
    run = train(tmp_path, f"--ckpt_path={saved_twice / name}.ckpt")
    assert run.folder == saved_twice.parent
    assert tables(run.folder) == tables(complete)
    assert same(state(run.folder), state(complete))


def test_the_best_checkpoint_stays_when_the_last_is_replaced(tmp_path: Path) -> None:
    """Until then both are one file. The resumed run becomes worse, so it writes last.ckpt only."""
    flags = ["--trainer.val_check_interval=2", "--model.schedule=null"]
    newest = last(train_small(tmp_path, *flags).folder)
    best = newest.with_name("best.ckpt")
    assert best.samefile(newest)
    content = best.read_bytes()
    large = ["--model.optimizer.lr=3", "--model.optimizer.adamw_lr=3", "--trainer.max_steps=6"]
    train_small(tmp_path, *flags, *large, f"--ckpt_path={newest}")
    assert best.read_bytes() == content
    assert torch.load(newest, weights_only=True)["global_step"] == 6


def test_a_checkpoint_outside_its_run_starts_a_new_folder(complete: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.ckpt"
    elsewhere.write_bytes(last(complete).read_bytes())
    before = tables(complete)
    run = train(tmp_path, f"--ckpt_path={elsewhere}", "--trainer.max_steps=14")
    assert run.folder != complete
    assert tables(complete) == before
    other = train(
        tmp_path, f"--ckpt_path={last(complete)}", "--trainer.max_steps=14", "--name=other"
    )
    assert other.folder.parent.name == "other"
    assert tables(complete) == before


def test_a_checkpoint_is_saved_at_intervals(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here after each step; saving does not change the run."""
    monkeypatch.setattr(saving.SignalCheckpoint.__init__, "__defaults__", (0.0,))
    steps: list[int] = []
    save = saving.SignalCheckpoint.save

    def note(saver: saving.SignalCheckpoint, trainer: Any) -> None:
        save(saver, trainer)
        steps.append(torch.load(saver.path, weights_only=True)["global_step"])

    monkeypatch.setattr(saving.SignalCheckpoint, "save", note)
    folder = train(tmp_path).folder
    assert steps == [*range(12)]
    assert tables(folder) == tables(complete)
    assert same(state(folder), state(complete))


class SignalInSetup(pl.Callback):
    """Sends a signal while Lightning still handles signals itself."""

    def on_train_start(self, *_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_during_set_up_stops_before_the_first_step(complete: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, "--trainer.callbacks+=test_checkpointing.SignalInSetup")
    assert stop.value.code == 128 + signal.SIGTERM
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    assert state(folder)["global_step"] == 0
    train(tmp_path, f"--ckpt_path={last(folder)}")
    assert tables(folder) == tables(complete)
    assert same(state(folder), state(complete))


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    saver = saving.SignalCheckpoint(tmp_path / "last.ckpt")
    saver._remember_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        saver._remember_signal(signal.SIGINT, None)
    saver = saving.SignalCheckpoint(tmp_path / "last.ckpt")
    for _ in range(3):
        saver._remember_signal(signal.SIGTERM, None)


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.needs("unix", "a limit on the size of files")
def test_a_full_disk_is_one_line_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    import resource

    io, path = saving.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"weights": torch.arange(10)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"cannot be saved .*earlier one, if any, is still complete"
        ):
            io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(10))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_that_cannot_be_written_is_one_line(
    complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, the pictures, the config: something else has its path."""
    for name in ("samples.csv", "attention", "config.yaml"):
        folder = tmp_path / name / "runs" / "gpt_cpu" / "version_0"
        shutil.copytree(complete, folder)
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


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
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
    assert re.search(r"the training loss is \S+ at step \d+: lower --model.optimizer.lr", said)
    assert f"--ckpt_path {last(folder)}" in said
    weights = torch.load(last(folder), weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize(
    ("validations", "minutes", "how", "said_of"),
    [
        (1, 5.0, LARGE_STEPS, "logits"),
        (2, 5.0, LARGE_STEPS, "the validation loss is"),
        (50, 0.0, ["--trainer.callbacks+=test_checkpointing.BreakWeights"], "not all weights"),
    ],
    ids=["at a sample", "at a validation", "between two of them"],
)
def test_weights_that_are_not_finite_are_never_saved(
    validations: int, minutes: float, how: list[str], said_of: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The loss of the step is finite, but its new weights are not."""
    folder = train_small(tmp_path).folder
    kept = {path.name: path.read_bytes() for path in last(folder).parent.iterdir()}
    monkeypatch.setattr(saving.SignalCheckpoint.__init__, "__defaults__", (minutes,))
    often = [f"--trainer.val_check_interval={validations}"]
    with pytest.raises(SystemExit) as stop:
        train_small(
            tmp_path, *often, "--trainer.max_steps=40", f"--ckpt_path={last(folder)}",
            *how,
        )  # fmt: skip
    said = capsys.readouterr().err
    assert stop.value.code == 2
    found = {path.name: path.read_bytes() for path in last(folder).parent.iterdir()}
    assert found["best.ckpt"] == kept["best.ckpt"]
    weights = torch.load(last(folder), weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())
    assert re.search(f"error: .*{said_of}.* lower --model.optimizer.lr", said)
    assert f"--ckpt_path {last(folder)}" in said


def test_a_checkpoint_callback_takes_no_path_from_a_checkpoint(tmp_path: Path) -> None:
    """Only the score, and only of its own folder."""
    kept = saving.RunCheckpoint(tmp_path, "best", monitor="val/loss")
    state = {
        "dirpath": str(tmp_path), "best_model_score": torch.tensor(1.5),
        "best_model_path": "simplecache::/notes.txt", "kth_best_model_path": "/notes.txt",
    }  # fmt: skip
    kept.load_state_dict(state)
    assert (kept.best_model_path, float(kept.best_model_score or 0)) == (str(kept.path), 1.5)
    assert [*kept.best_k_models] == [kept.kth_best_model_path] == [str(tmp_path / "best.ckpt")]
    other = saving.RunCheckpoint(tmp_path / "other", "best", monitor="val/loss")
    other.load_state_dict(state)
    assert (other.best_model_path, other.best_model_score) == ("", None)
