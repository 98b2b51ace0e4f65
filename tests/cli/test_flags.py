"""Every flag that `--help` lists has an effect; the others are refused, or named in a notice."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from tiny import TINY, Refusal

from lit_gpt_scratch import cli
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.cli.flags import EFFECTS, HELP, PAGES, without_effect
from lit_gpt_scratch.cli.program import TRAINER_COMMANDS

FIT = ["--data.corpus=sample", "--data.sample_size=20000", "--data.context=16"]
FIT += ["--model.net=Bigram", "--trainer.accelerator=cpu", "--wandb.mode=disabled"]
# For each flag of the Trainer: a value other than the default, what it changes, and to what.
CHANGES: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
    "strategy": ("ddp", lambda t: type(t.strategy).__name__, "DDPStrategy"),
    "devices": ("2", lambda t: t.num_devices, 2),
    "num_nodes": ("2", lambda t: t.num_nodes, 2),
    "precision": ("64-true", lambda t: t.precision, "64-true"),
    "callbacks": ("DeviceStatsMonitor", lambda t: "DeviceStats" in str(t.callbacks), True),
    "fast_dev_run": ("3", lambda t: t.max_steps, 3),
    "max_epochs": ("3", lambda t: (t.max_epochs, t.max_steps), (3, -1)),
    "min_epochs": ("2", lambda t: t.fit_loop.min_epochs, 2),
    "max_steps": ("9", lambda t: t.max_steps, 9),
    "min_steps": ("9", lambda t: t.fit_loop.min_steps, 9),
    "max_time": (
        "00:00:01:00",
        lambda t: ([c.time_remaining() for c in t.callbacks if isinstance(c, Timer)], t.max_steps),
        ([60.0], -1),
    ),
    "limit_train_batches": ("5", lambda t: t.limit_train_batches, 5),
    "limit_val_batches": ("5", lambda t: t.limit_val_batches, 5),
    "overfit_batches": ("5", lambda t: (t.limit_train_batches, t.limit_val_batches), (5, 5)),
    "val_check_interval": ("7", lambda t: t.val_check_interval, 7),
    "check_val_every_n_epoch": ("2", lambda t: t.check_val_every_n_epoch, 2),
    "num_sanity_val_steps": ("2", lambda t: t.num_sanity_val_steps, 2),
    "log_every_n_steps": ("3", lambda t: t.log_every_n_steps, 3),
    "enable_model_summary": ("true", lambda t: "ModelSummary" in str(t.callbacks), True),
    "accumulate_grad_batches": ("2", lambda t: t.accumulate_grad_batches, 2),
    "gradient_clip_val": ("0.5", lambda t: t.gradient_clip_val, 0.5),
    "gradient_clip_algorithm": ("value", lambda t: t.gradient_clip_algorithm, "value"),
    "deterministic": ("true", lambda _: torch.are_deterministic_algorithms_enabled(), True),
    "benchmark": ("true", lambda _: torch.backends.cudnn.benchmark, True),
    "profiler": ("simple", lambda t: type(t.profiler).__name__, "SimpleProfiler"),
    "detect_anomaly": ("true", lambda t: t._detect_anomaly, True),
    "plugins": (
        "DoublePrecision --trainer.precision=null",
        lambda t: type(t.precision_plugin).__name__,
        "DoublePrecision",
    ),
}
# These change more than the Trainer: tests below look at what a fit does with them.
IN_A_FIT = {
    "accelerator", "logger", "enable_checkpointing", "enable_progress_bar", "default_root_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> CharCLI:
    """Return a command line with the default of each flag of the Trainer."""
    return CharCLI("fit", FIT)


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore what flags set for the whole process."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def page(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return a page of the help, which `--help` or `--help.GROUP` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([command, flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_on(text: str) -> dict[str, str]:
    """Return the flags on a page, each with its text on one line."""
    parts = re.split(r"^  (?:-\w(?: \w+)?, )?--", text, flags=re.MULTILINE)[1:]
    texts = {re.match(r"[\w.]+", part)[0]: " ".join(part.split()) for part in parts}  # type: ignore[index]
    return {name: text for name, text in texts.items() if not name.endswith(".help")}


def listed(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the flags on all pages: those that the last line of `--help` names, and this one."""
    text = page(command, "--help", capsys)
    others = re.findall(r"--help\.\w+", text.splitlines()[-1])
    pages = [text, *(page(command, flag, capsys) for flag in others)]
    return {name: text for listing in pages for name, text in flags_on(listing).items()}


OWN = {
    "fit": ["help", "config", "print_config", "ckpt_path", "name", "seed_everything", "plugin"],
    "validate": ["help", "config", "print_config", "ckpt_path", "seed_everything", "plugin"],
    "predict": [
        "help", "config", "print_config", "ckpt_path", "max_new_tokens", "temperature", "top_k",
        "top_p", "min_p", "seed", "prompt", "prompt_file", "num_samples", "stop",
        "seed_everything", "plugin",
    ],
}  # fmt: skip
OWN["test"] = OWN["validate"]
GROUPS = {"fit": ["data", "model", "trainer", "wandb"], "validate": ["data"], "test": ["data"]}
MOST_USED = ["accelerator", "devices", "precision", "max_steps", "val_check_interval"]


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_help_begins_with_the_options_of_the_command_itself(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is short: two screens, but for fit."""
    monkeypatch.setenv("COLUMNS", "80")
    text = page(command, "--help", capsys)
    shown = list(flags_on(text))
    own = OWN[command]
    assert shown[: len(own)] == own
    rest = shown[len(own) :]
    assert list(dict.fromkeys(name.split(".")[0] for name in rest)) == GROUPS.get(command, [])
    of_trainer = [name for name in rest if name.startswith("trainer")]
    assert of_trainer == [f"trainer.{name}" for name in MOST_USED if command == "fit"]
    assert len(text.splitlines()) <= (160 if command == "fit" else 100)
    assert "hpc" not in text, "Lightning's own text is wrong here"


@pytest.mark.parametrize("group", PAGES)
def test_a_page_of_help_lists_one_group(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = page("fit", f"--help.{group}", capsys)
    assert {name.split(".")[0] for name in flags_on(text)} == {group}
    assert re.search(r"--help\b(?!\.)", text.splitlines()[-1]), "it names the first page"


def test_the_help_of_fit_lists_a_flag_if_it_has_an_effect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {name.removeprefix("trainer.") for name in listed("fit", capsys) if "trainer." in name}
    assert flags == CHANGES.keys() | IN_A_FIT
    assert HELP.keys() <= flags


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.usefixtures("restored")
def test_a_flag_of_the_trainer_changes_something(name: str, plain: CharCLI) -> None:
    value, look, expected = CHANGES[name]
    assert look(plain.trainer) != expected
    changed = CharCLI("fit", [*FIT, *f"--trainer.{name}={value}".split()])
    assert look(changed.trainer) == expected


def test_flags_that_fit_itself_reads_have_an_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = cli.main(["fit", *TINY])
    assert {path.name for path in plain.folder.iterdir()} >= {"checkpoints", "metrics.csv"}
    other = ["--trainer.default_root_dir=out", "--trainer.enable_checkpointing=false"]
    other += ["--trainer.logger=false", "--trainer.enable_progress_bar=true"]
    changed = cli.main(["fit", *TINY, *other])
    assert changed.folder == Path("out/runs/gpt_cpu/version_0")
    assert not {path.name for path in changed.folder.iterdir()} & {"checkpoints", "metrics.csv"}
    assert type(plain.progress) is not type(changed.progress)
    own = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    own += ["--trainer.max_steps=1"]
    assert (cli.main(["fit", *TINY, *own]).folder / "metrics.csv").exists()
    assert [*Path("logs").rglob("metrics.csv")]


def test_the_accelerator_is_the_one_that_the_flag_names(refusal: Refusal) -> None:
    assert "torch_xla" in refusal("fit", *FIT, "--trainer.accelerator", "tpu")


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_help_says_each_default_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's texts name its own defaults, which are not those of this program."""
    for name, text in listed(command, capsys).items():
        assert "Default:" not in text, name


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_no_help_lists_a_flag_without_an_effect(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, hidden = listed(command, capsys), without_effect(command)
    assert not [name for name in shown for flag in hidden if f"{name}.".startswith(f"{flag}.")]
    everywhere = {
        name for names, where, _ in EFFECTS if command in where.split() for name in names.split()
    }
    assert not [flag for flag in everywhere if not any(name.startswith(flag) for name in shown)]


@pytest.mark.parametrize("flag", without_effect("fit"))
def test_fit_refuses_a_flag_without_an_effect(flag: str, refusal: Refusal) -> None:
    is_number = any(part in flag for part in ("limit", "every_n", "stride"))
    is_on = flag.endswith(("enable_autolog_hparams", "inference_mode"))
    value = "2" if is_number else "false" if is_on else "true"
    assert f"--{flag} has no effect in fit: " in refusal("fit", *FIT, f"--{flag}", value)


def test_a_flag_without_an_effect_is_not_suggested(checkpoint: Path, refusal: Refusal) -> None:
    assert "sync_batchnorm?" not in refusal("fit", *FIT, "--trainer.sync_batchnor", "true")
    for flag in ("--lr", "--max_steps"):
        assert "did you mean" not in refusal("validate", "--ckpt_path", checkpoint, flag, "3")


def test_other_commands_name_a_flag_without_an_effect_but_not_those_of_a_config(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's own config.yaml, which has all flags of fit, suits every command."""
    last = ["--ckpt_path", str(run_folder / "checkpoints" / "last.ckpt")]
    for command in ("validate", "predict"):
        cli.main([command, "--config", str(run_folder / "config.yaml"), *last])
        assert "no effect" not in capsys.readouterr().err
    flags = ["--trainer.max_steps", "3", "--model.optimizer.lr=0.1", "--data.val_fraction", "0.2"]
    flags += ["--wandb.mode=disabled"]
    cli.main(["validate", *last, *flags])
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "effect" in line] == [
        "Notice: --trainer.max_steps has no effect in validate: only fit trains.",
        "Notice: --model.optimizer.lr has no effect in validate: only fit trains.",
        "Notice: --wandb.mode has no effect in validate: only fit records a run.",
    ]


def test_the_limits_of_batches_in_validate_are_those_of_the_flags_that_it_lists(
    checkpoint: Path,
) -> None:
    """overfit_batches is one of them."""
    needed = ["--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"]
    shown = CharCLI("validate", [*needed, "--trainer.overfit_batches=5"]).trainer
    assert shown.limit_val_batches == 5
    hidden = ("limit_train_batches", "limit_test_batches", "limit_predict_batches")
    other = CharCLI("validate", [*needed, *(f"--trainer.{name}=5" for name in hidden)]).trainer
    assert other.limit_val_batches == 1.0


def test_validate_writes_to_a_logger_that_is_given(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    cli.main(["validate", "--ckpt_path", str(checkpoint), *logger])
    (table,) = Path("logs").rglob("metrics.csv")
    assert "val/loss" in table.read_text(encoding="utf-8")


def test_min_steps_does_not_prevent_the_last_validation(tmp_path: Path) -> None:
    """max_steps ends a run even if it is below min_steps, which asks for more."""
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.min_steps=100"]
    fitted = cli.main(["fit", *TINY, *root])
    assert fitted.trainer.global_step == 7
    saved = torch.load(fitted.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 7


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("plugins", "AsyncCheckpointIO", "fit has its own for checkpoints"),
        ("val_check_interval", "00:00:01:00", "it must be a whole number"),
        ("default_root_dir", "s3://bucket/runs", "it must be a folder"),
    ],
)
def test_values_that_cannot_work_here_are_refused(
    flag: str, value: str, words: str, refusal: Refusal
) -> None:
    assert words in refusal("fit", *FIT, f"--trainer.{flag}", value)


def test_logger_true_means_the_runs_own_loggers(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps=1"]
    fitted = cli.main(["fit", *TINY, "--trainer.logger=true", *root])
    assert (fitted.folder / "metrics.csv").exists()
