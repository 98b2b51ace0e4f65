"""Flags without an effect, values that cannot work, and help texts that replace Lightning's.

A flag without an effect is not in `--help`. A config may have it: one config serves all commands.
"""

import re
import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli.program import own_configs
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import options
from lit_gpt_scratch.runs.folder import runs_folder
from lit_gpt_scratch.runs.listing import find_checkpoint
from lit_gpt_scratch.shell import PROGRAM
from lit_gpt_scratch.training.distributed import is_rank_zero
from lit_gpt_scratch.training.hardware import kind_of_device, supported

# Each row: flags, the commands that use them, and why the other commands do not.
# All commands use the flags that are not listed.
EFFECTS = (
    ("trainer.barebones", "", "a run is always recorded and checked"),
    ("trainer.enable_autolog_hparams", "", "config.yaml has all hyperparameters"),
    ("trainer.model_registry", "", "checkpoints are files in the folder of a run"),
    ("trainer.reload_dataloaders_every_n_epochs", "", "the data is the same in every epoch"),
    ("trainer.sync_batchnorm", "", "no network here has batch norm"),
    ("trainer.use_distributed_sampler", "", "the data module gives each process its share"),
    ("trainer.inference_mode", "validate test predict", "in fit, Lightning always uses no_grad"),
    ("trainer.limit_val_batches", "fit validate", "it does not read the validation split"),
    ("trainer.overfit_batches", "fit validate", "it neither trains nor validates"),
    ("trainer.limit_test_batches", "test", "it does not read the test split"),
    ("trainer.limit_predict_batches", "predict", "it continues no prompts"),
    ("trainer.logger", "fit validate test", "it logs nothing"),
    ("trainer.enable_progress_bar", "fit validate test", "it prints its texts only"),
    (
        "trainer.max_epochs trainer.min_epochs trainer.max_steps trainer.min_steps "
        "trainer.max_time trainer.limit_train_batches trainer.val_check_interval "
        "trainer.check_val_every_n_epoch trainer.num_sanity_val_steps trainer.log_every_n_steps "
        "trainer.enable_checkpointing trainer.enable_model_summary trainer.accumulate_grad_batches "
        "trainer.gradient_clip_val trainer.gradient_clip_algorithm trainer.detect_anomaly "
        "model.optimizer model.schedule model.compile model.teacher model.teacher_weight "
        "model.teacher_temperature data.batch_size data.seed data.order",
        "fit",
        "only fit trains",
    ),
    ("name wandb", "fit", "only fit records a run"),
    ("data.stride", "validate test", "it does not evaluate in overlapping windows"),
    (
        "data.corpus data.val_fraction data.test_fraction data.sha256 data.fallback "
        "data.sample_size",
        "fit validate test",
        "it reads no corpus",
    ),
)
COUNTS = (
    "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches"
)  # fmt: skip
# Help texts that replace Lightning's, which are wrong for this program.
LIMIT = "It replaces the default of max_steps."
HELP = {
    "accelerator": "The kind of device: cpu, gpu (CUDA or MPS), or auto, a GPU if there is one.",
    "devices": "Number of devices, a list of their numbers, or auto: all GPUs, or one CPU.",
    "strategy": "How devices train together. ddp: each has all weights. fsdp2: weights are split "
    "between them. auto: ddp, if there are several.",
    "precision": "Of weights and computation: as bf16-mixed, weights in fp32, products in bf16.",
    "logger": "More loggers. false: none at all; fit then writes no metrics.csv and no W&B run.",
    "fast_dev_run": "Run only this number of batches, to find bugs. true: one batch.",
    "max_epochs": f"Stop after this number of epochs. -1: no limit. {LIMIT}",
    "max_time": f"Stop after this time, DD:HH:MM:SS (days, hours, minutes, seconds). {LIMIT}",
    "max_steps": "Stop after this number of optimizer steps. -1: no limit, if max_epochs or "
    "max_time is given.",
    "min_epochs": "Epochs before max_time or EarlyStopping may stop the training.",
    "min_steps": "Optimizer steps before max_time or EarlyStopping may stop the training.",
    "limit_train_batches": "Batches in an epoch of each device: a number or, as 0.5, a fraction.",
    "limit_val_batches": "Batches of a validation on each device: a number or, as 0.5, a fraction. "
    "0: no validation.",
    "overfit_batches": "Train on the same batches in every epoch, and validate on as many: a "
    "number or, as 0.5, a fraction.",
    "val_check_interval": "Validate after this number of batches; before the first, also after "
    "steps 1, 10, 30, 100, ... With check_val_every_n_epoch, 0.5 is twice in an epoch.",
    "check_val_every_n_epoch": "Validate only in epochs that are multiples of this number, where "
    "val_check_interval starts again. null: count the batches of all epochs.",
    "num_sanity_val_steps": "Batches to validate before training. -1: all.",
    "log_every_n_steps": "Log training metrics after this number of optimizer steps.",
    "enable_checkpointing": "false: save no checkpoint.",
    "enable_progress_bar": "Show a progress bar. null: only on a terminal.",
    "benchmark": "Let cuDNN choose the fastest convolutions, for a network of your own that has "
    "some.",
    "plugins": "Lightning's plugins for precision (with --trainer.precision null) and clusters. "
    "fit has its own for checkpoints.",
    "default_root_dir": "The folder that has, or will have, the folder runs/. null: this folder.",
}  # fmt: skip


# `--help` lists a command's own options and these; `--help.GROUP` lists all options of a group.
PAGES = ("data", "model", "trainer")
FIRST_PAGE = {
    "fit": "data model.net model.optimizer model.schedule model.compile model.teacher "
    "trainer.max_steps trainer.val_check_interval trainer.precision "
    "trainer.devices trainer.accelerator",
    "validate": "data",
    "test": "data",
    "predict": "",
}


def without_effect(command: str) -> dict[str, str]:
    """Return the flags that have no effect in a command, each with the reason."""
    unused = [(names, why) for names, where, why in EFFECTS if command not in where.split()]
    return {name: why for names, why in unused for name in names.split()}


def why_no_effect(command: str, flag: str) -> str | None:
    """Return why a flag, or the group that it is in, has no effect; None: it has one."""
    return next((why for name, why in without_effect(command).items() if is_in(flag, name)), None)


def is_in(flag: str, group: str) -> bool:
    """Return whether a flag is in a group, or is the group itself."""
    return f"{flag}.".startswith(f"{group}.")


def is_on_page(flag: str, command: str, page: str | None) -> bool:
    """Return whether a page of the help lists a flag; page None: the first one, `--help`."""
    if page:
        return is_in(flag, page)
    is_own = flag.partition(".")[0] not in PAGES
    return is_own or any(is_in(flag, name) for name in FIRST_PAGE[command].split())


def correct_help(parser: Any, command: str, page: str | None) -> None:
    """Hide flags that are on other pages or have no effect; correct the help of the others.

    Call it only before help is printed: jsonargparse leaves hidden flags out of hyperparameters.
    """
    for option in options(parser):
        is_link = not option.option_strings[0].startswith("-")  # data.context --> model.context
        is_elsewhere = not is_on_page(option.dest, command, page)
        if is_link or is_elsewhere or why_no_effect(command, option.dest):
            option.help = SUPPRESS
        elif option.dest.startswith("trainer.") and option.help:
            text = HELP.get(option.dest.removeprefix("trainer."), option.help)
            # Lightning's defaults; the parser adds those that are true here.
            option.help = re.sub(r"\s*Default: (``.*?``|\d+)\.?", "", text)
    others = [name for name in PAGES if name != page and name not in FIRST_PAGE[command].split()]
    pages = ["--help"] * bool(page) + [f"--help.{name}" for name in others]
    parser.epilog = f"More options: {PROGRAM} {command} {', '.join(pages)}"


def check_effects(command: str, args: Any) -> None:
    """Refuse a flag of the command line that has no effect in fit; elsewhere, print a notice.

    A config, a dict and a Namespace may have flags of all commands.
    """
    words = args if isinstance(args, list) else []
    named = [word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")]
    for flag in named:
        if why := why_no_effect(command, flag):
            text = f"--{flag} has no effect in {command}: {why}."
            if command == "fit":
                raise InputError(f"{text} Leave it out.")
            if is_rank_zero():
                print(f"Notice: {text}", file=sys.stderr)


def check_or_replace_values(command: str, config: Any) -> None:
    """Refuse values that cannot work. Replace values that the device lacks, and say so."""
    trainer, device = config.trainer, kind_of_device(config.trainer.accelerator)
    for name in COUNTS:
        value = trainer[name]
        is_fraction = name == "val_check_interval" and isinstance(value, float) and value > 0
        is_count = isinstance(value, int) and value >= 1
        if not (value is None or is_fraction or is_count):  # Lightning takes texts as times
            raise InputError(
                f"--trainer.{name} is {value}: it must be a whole number, at least 1. For "
                "val_check_interval it may be a fraction of an epoch, as 0.5."
            )
    if str(trainer.precision).startswith("64"):
        trainer.precision = supported(device, "--trainer.precision", "64-true")
    if command == "fit" and config.model.compile is True:
        config.model.compile = supported(device, "--model.compile", "true") == "true"
    if command == "fit" and config.model.teacher:
        teacher = find_teacher(config.model.teacher, runs_folder(trainer.default_root_dir))
        config.model.teacher = teacher.as_posix()


def find_teacher(wanted: str, runs: Path) -> Path:
    """Return the checkpoint that --model.teacher names: a path, runs/NAME, or best or last.

    Raises InputError if there is none.
    """
    beside = runs.parent / wanted  # a config names runs/NAME; the runs may be in another folder
    path = find_checkpoint(str(beside if beside.exists() else wanted), runs, flag="--model.teacher")
    if not path.exists():
        name = Path(wanted).name
        remedy = "Give a run's folder, a .ckpt file, or best or last"
        if name in own_configs():
            remedy = f"Train it first: {PROGRAM} fit --config {name}"
        raise InputError(f"--model.teacher {wanted}: there is no such run or file. {remedy}.")
    return path
