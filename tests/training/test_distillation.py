"""Distillation: the loss, the frozen teacher, and what is refused."""

import math
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compare_runs import last, same, state, tables
from hypothesis import given
from hypothesis import strategies as st
from laws import train_small
from test_checkpointing import SendSignal
from torch import Tensor, nn

from lit_gpt_scratch import cli
from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, Bigram, Ensemble
from lit_gpt_scratch.training import AdamW, LitCharLM
from lit_gpt_scratch.training.distillation import Teacher

WEIGHTS, TEMPERATURES = st.floats(0, 1), st.floats(0.1, 10)


def teacher_with(net: nn.Module, weight: float = 1.0, temperature: float = 1.0) -> Teacher:
    """Return a teacher with a network, as if it were loaded."""
    teacher = Teacher("no/file", weight, temperature)
    teacher.net = net.eval().requires_grad_(False)
    return teacher


def random_bigram(seed: int, size: int = 5) -> Bigram:
    torch.manual_seed(seed)
    net = Bigram(size, 8)
    nn.init.normal_(net.table.weight, std=2)
    return net


# The loss


@given(WEIGHTS, TEMPERATURES)
def test_the_loss_is_cross_entropy_with_both_targets(weight: float, temperature: float) -> None:
    """Written out here with fp64 sums over the alphabet."""
    teacher, ids = random_bigram(1), torch.randint(5, (2, 6))
    logits = random_bigram(2)(ids)
    data_loss = torch.tensor(1.25)
    found = teacher_with(teacher, weight, temperature).mix(data_loss, logits, ids)
    soft = (teacher(ids).double() / temperature).softmax(-1)
    log_probs = (logits.double() / temperature).log_softmax(-1)
    teachers_loss = temperature**2 * -(soft * log_probs).sum(-1).mean()
    expected = weight * teachers_loss + (1 - weight) * data_loss.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@given(TEMPERATURES)
def test_a_student_equal_to_its_teacher_gets_no_gradient(temperature: float) -> None:
    ids = torch.randint(5, (2, 6))
    student = random_bigram(1)
    loss = teacher_with(random_bigram(1), 1.0, temperature).mix(
        torch.tensor(0.0), student(ids), ids
    )
    loss.backward()
    assert student.table.weight.grad.abs().max() < 1e-6


def test_the_temperature_keeps_the_size_of_gradients() -> None:
    """For large temperatures, the gradient nears that of half the squared difference of logits."""

    def gradient(temperature: float) -> Tensor:
        ids = torch.arange(5)[None]
        logits = random_bigram(2)(ids).detach().requires_grad_()
        teacher = teacher_with(random_bigram(1), 1.0, temperature)
        teacher.mix(torch.tensor(0.0), logits, ids).backward()
        return logits.grad

    torch.testing.assert_close(gradient(100), gradient(200), rtol=0.1, atol=1e-3)
    assert gradient(200).norm() > 0.01


def test_with_weight_0_the_text_alone_teaches() -> None:
    ids = torch.randint(5, (2, 6))
    data_loss = torch.tensor(1.5)
    assert teacher_with(random_bigram(1), 0.0).mix(data_loss, random_bigram(2)(ids), ids) == 1.5


# Training


def fit(path: Path, steps: int, net: Any = Bigram, **how: Any) -> tuple[LitCharLM, Any]:
    """Train on the built-in text with a teacher."""
    torch.manual_seed(0)
    data = CharDataModule("sample", 8, 32, seed=1, sample_size=20_000)
    model = LitCharLM(
        net, partial(AdamW, lr=0.1, weight_decay=0.0), None, alphabet=data.alphabet, context=8,
        teacher=str(path), **how,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return model, trainer


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a network with dropout: it predicts differently in training mode."""
    folder = tmp_path_factory.mktemp("teacher")
    return last(train_small(folder, "--model.net=GPT", *SMALL_GPT).folder)


SMALL_GPT = ["--model.net.layers=1", "--model.net.width=16", "--model.net.dropout=0.5"]


def test_the_student_learns_the_teachers_probabilities(tmp_path: Path) -> None:
    """Those of a random table, which no text has; with weight 0 it does not learn them."""
    run = train_small(tmp_path, "--model.net=Bigram")
    data = run.datamodule
    table = random_bigram(3, len(data.alphabet))
    checkpoint = torch.load(last(run.folder), weights_only=True)
    checkpoint["state_dict"] = {"net.table.weight": table.table.weight.detach()}
    torch.save(checkpoint, tmp_path / "random.ckpt")
    common = data.tokens.long().bincount() > 200

    def distance(weight: float) -> float:
        student, _ = fit(tmp_path / "random.ckpt", 200, teacher_weight=weight)
        rows = [net.table.weight.detach().softmax(-1)[common] for net in (student.net, table)]
        return float((rows[0] - rows[1]).abs().sum(-1).mean())

    assert distance(1.0) < 0.2 < 1.0 < distance(0.0)


def test_the_teacher_stays_as_it_is(teacher_path: Path) -> None:
    """It is no part of the student, has no dropout, and is not trained."""
    before = torch.load(teacher_path, weights_only=True)["state_dict"]
    net = partial(GPT, layers=1, width=16, dropout=0.5)
    model, _ = fit(teacher_path, 5, net)
    assert model.teacher is not None
    teacher = model.teacher.net
    assert teacher is not None
    assert not teacher.training
    after = teacher.state_dict()
    assert same({f"net.{name}": weight for name, weight in after.items()}, before)
    assert model.state_dict().keys() == before.keys()
    ids = torch.arange(8)[None]
    assert torch.equal(teacher(ids), teacher(ids))
    assert all(p.grad is None for p in teacher.parameters())


def test_train_loss_is_the_loss_of_the_text(teacher_path: Path, tmp_path: Path) -> None:
    """So it compares with val/loss and with other runs. Without learning, it is the same."""
    flags = [
        "--trainer.log_every_n_steps=1", "--trainer.max_steps=3", "--model.optimizer.lr=1e-30",
        "--model.optimizer.adamw_lr=1e-30", "--trainer.precision=32-true",
    ]  # fmt: skip
    taught = train_small(tmp_path / "taught", *flags, f"--model.teacher={teacher_path}")
    alone = train_small(tmp_path / "alone", *flags)
    losses = [
        [row["train/loss"] for row in tables(run.folder)["metrics.csv"] if row["train/loss"]]
        for run in (taught, alone)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    alphabet = len(taught.datamodule.alphabet)
    assert float(losses[0][0]) == pytest.approx(math.log(alphabet), abs=1e-4)


@pytest.mark.parametrize("compile", ["true", "false"])
def test_a_distilled_run_resumes_bit_for_bit(
    teacher_path: Path, tmp_path: Path, compile: str
) -> None:
    flags = [
        "--model.net.dropout=0.2", "--trainer.max_steps=8", "--trainer.log_every_n_steps=2",
        "--trainer.val_check_interval=4", "--trainer.callbacks+=test_checkpointing.SendSignal",
        f"--model.compile={compile}",
    ]  # fmt: skip
    teach = f"--model.teacher={teacher_path}"
    complete = train_small(tmp_path / "complete", *flags, teach).folder
    folder = tmp_path / "stopped" / "runs" / "gpt_cpu" / "version_0"
    SendSignal.batch = 5
    try:
        with pytest.raises(SystemExit):
            train_small(tmp_path / "stopped", *flags, teach)
    finally:
        SendSignal.batch = -1
    torch.compiler.reset()  # as in a new process
    train_small(tmp_path / "stopped", *flags, f"--ckpt_path={last(folder)}")  # it names the teacher
    assert tables(folder) == tables(complete)
    assert same(state(folder), state(complete))
    alone = train_small(tmp_path / "alone", *flags).folder
    assert not same(state(alone), state(complete))  # the teacher did something


def test_a_run_is_not_resumed_with_another_teacher(
    teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "teacher.ckpt"
    shutil.copy(teacher_path, own)
    folder = train_small(tmp_path / "run", f"--model.teacher={own}").folder
    other = train_small(tmp_path / "other", "--model.net=GPT", *SMALL_GPT, "--seed_everything=5")
    shutil.copy(last(other.folder), own)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path / "run", f"--ckpt_path={last(folder)}", "--trainer.max_steps=6")
    assert stop.value.code == 2
    assert "teacher.ckpt has other weights than when this run began" in capsys.readouterr().err


def test_other_commands_do_not_need_the_teacher(
    teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copy(teacher_path, tmp_path / "teacher.ckpt"))
    student = last(train_small(tmp_path, f"--model.teacher={own}").folder)
    own.unlink()
    cli.main(["validate", "--ckpt_path", str(student), "--data.corpus=sample"])
    capsys.readouterr()
    cli.main(["predict", "--ckpt_path", str(student), "--max_new_tokens=5"])
    assert len(capsys.readouterr().out) > 5
    with pytest.raises(SystemExit):  # but fit does
        train_small(tmp_path, f"--ckpt_path={student}", "--trainer.max_steps=6")
    assert "teacher.ckpt: there is no such run or file" in capsys.readouterr().err


def test_an_ensemble_can_teach_and_be_taught(tmp_path: Path) -> None:
    small = ["--model.net.net=GPT", "--model.net.net.layers=1", "--model.net.net.width=16"]
    ensemble = ["--model.net=Ensemble", *small, "--model.net.size=2"]
    teacher = train_small(tmp_path / "teacher", *ensemble).folder
    student = train_small(tmp_path / "student", *ensemble, f"--model.teacher={teacher}")
    assert isinstance(student.model.teacher.net, Ensemble)
    named = f"--model.teacher=runs/{teacher.parent.name}"  # beside the student's run
    assert train_small(tmp_path / "teacher", named).config.model.teacher.startswith(str(tmp_path))
    assert student.config.model.teacher == (teacher / "checkpoints" / "best.ckpt").as_posix()


def test_a_notice_says_if_the_teacher_may_have_read_the_validation_split(
    teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teach = f"--model.teacher={teacher_path}"
    train_small(tmp_path, teach)
    err = capsys.readouterr().err
    assert f"teacher      {teacher_path}, weight 1.0\n" in err
    assert "teacher may have" not in err
    train_small(tmp_path, teach, "--data.val_fraction=0.2")
    assert (
        "Notice: val_fraction is 0.2, for the teacher it was 0.1: the teacher may have been "
        "trained on validation text." in capsys.readouterr().err
    )
    train_small(tmp_path, teach, "--data.val_fraction=0.2", "--data.sample_size=21000")
    assert "teacher may have" not in capsys.readouterr().err  # another text


def test_a_trainer_with_a_teachers_callback_trains_a_network_without_one(
    teacher_path: Path,
) -> None:
    model, trainer = fit(teacher_path, 1)
    model.teacher = None
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(model, trainer.datamodule)
    assert trainer.global_step == 2


# Mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.teacher_weight=1.5"], "--model.teacher_weight is 1.5: it must be from 0 to 1"),
        (["--model.teacher_weight=.nan"], "--model.teacher_weight is nan: it must be from 0 to 1"),
        (["--model.teacher_temperature=0"], "--model.teacher_temperature is 0"),
        (["--model.teacher=best"], r"--model.teacher best: no run in .* has a best.ckpt"),
        (
            ["--model.teacher=no.ckpt"],
            "--model.teacher no.ckpt: there is no such run or file. Give a run's folder",
        ),
        (
            ["--model.teacher=runs/gpt_cpu_long"],
            "no such run or file. Train it first: lit-gpt-scratch fit --config gpt_cpu_long",
        ),
        (["--data.context=16"], "was trained with a context of 8: give --data.context 8 or less"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(
    teacher_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path, f"--model.teacher={teacher_path}", *flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_must_know_the_same_characters(teacher_path: Path) -> None:
    teacher = Teacher(str(teacher_path), 0.5, 1.0)
    with pytest.raises(InputError, match="was trained on other characters"):
        teacher.load("ab", 8, None)
    assert teacher.net is None


def test_a_damaged_teacher_is_refused(teacher_path: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(teacher_path, weights_only=True)
    del checkpoint["state_dict"]["net.embed.character.weight"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(InputError, match="does not fit together"):
        Teacher(str(tmp_path / "cut.ckpt"), 0.5, 1.0).load("ab", 8, None)
