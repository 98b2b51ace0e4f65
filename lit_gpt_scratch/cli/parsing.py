"""The flags of fit, validate, test and predict. A checkpoint's values become their defaults."""

import argparse
import sys
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_module

from lit_gpt_scratch.checkpoints.formats import HYPERPARAMETERS, import_plugin, read_checkpoint
from lit_gpt_scratch.cli.messages import Parser, explain, known_names, with_flags
from lit_gpt_scratch.cli.predict import PredictSettings
from lit_gpt_scratch.cli.program import PROGRAM, TRAINER_COMMANDS
from lit_gpt_scratch.data.corpus import absolute_name, download_path
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY
from lit_gpt_scratch.runs.folder import find_checkpoint, runs_folder
from lit_gpt_scratch.runs.loggers import WandbSettings
from lit_gpt_scratch.training.hardware import fastest_precision
from lit_gpt_scratch.training.module import LitCharLM

TRAINER_DEFAULTS = {
    "max_steps": 700,
    "max_epochs": -1,  # one endless epoch: only steps count
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "log_every_n_steps": 50,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module gives each process its share
}
MAX_NESTED = 10_000  # brackets in one argument
NESTED = (
    f"an argument has more than {MAX_NESTED:,} of the characters [ {{ - ? and cannot be read. "
    "If it is --prompt, put the text into a file and give --prompt_file."
)


class CheckpointCLI(LightningCLI):
    """Lightning's CLI, where --ckpt_path makes a checkpoint's values the defaults of all flags."""

    ckpt_path: Path | None = None  # the checkpoint; if there is one, the values below are set
    ckpt_step: int  # the optimizer step that it was saved at
    ckpt_data: dict[str, Any]  # the hyperparameters of its data module
    weights: dict[str, Any]  # its state_dict
    wandb_id: str | None = None  # the id of its W&B run
    parsers: dict[str, LightningArgumentParser]  # by command; the key of the main parser is ""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self.parsers = {}
        settings: dict[str, Any] = {"prog": PROGRAM, "allow_abbrev": False, "exit_on_error": False}
        for name, text in TRAINER_COMMANDS.items():
            usage = f"{PROGRAM} {name} [options]"
            settings[name] = {"command": name, "usage": usage, "description": text}
        try:
            super().__init__(
                LitCharLM,
                CharDataModule,
                save_config_callback=None,
                auto_configure_optimizers=False,
                parser_class=Parser,
                parser_kwargs=settings,
                trainer_defaults=TRAINER_DEFAULTS | {"precision": fastest_precision()},
                args=list(sys.argv[1:] if args is None else args),
            )
        except InputError as error:
            if config := getattr(self, "config", None):  # it is parsed
                raise InputError(with_flags(str(error), config[config.subcommand])) from error
            raise

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return each command with the arguments of its Trainer method: none becomes a flag."""
        return {name: {*signature(getattr(Trainer, name)).parameters} for name in TRAINER_COMMANDS}

    def init_parser(self, command: str = "", **kwargs: Any) -> LightningArgumentParser:
        self.parsers[command] = super().init_parser(**kwargs)
        return self.parsers[command]

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        fit, predict = self.parsers["fit"], self.parsers["predict"]
        fit.add_argument("--name", type=str | None, help="Name of the run; default: the config's.")
        fit.add_class_arguments(WandbSettings, "wandb")
        predict.add_class_arguments(PredictSettings)
        # bf16 is slower here: for one character at a time, casts cost more than they save.
        predict.set_defaults({"trainer.devices": 1, "trainer.precision": "32-true"})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        seed_help = "Seed of all random numbers. true: a random seed."
        parser.add_argument("--seed_everything", type=bool | int, default=1337, help=seed_help)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(CharDataModule, "data")
        parser.add_lightning_class_args(LitCharLM, "model")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        plugin_help = "Your own module, if the checkpoint uses its classes."
        parser.add_argument("--plugin", type=str | None, help=plugin_help)
        ckpt_help = (
            "Checkpoint: a .ckpt file, or best or last of the newest run. fit resumes from it."
        )
        parser.add_argument("--ckpt_path", type=str | None, help=ckpt_help)
        parser.link_arguments("data.alphabet", "model.alphabet", apply_on="instantiate")
        parser.link_arguments("data.context", "model.context", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags. If they name a checkpoint, its values become the defaults first."""
        # The parser reads every value as YAML too, and a deeply nested one overflows the C stack.
        if any(sum(map(value.count, "[{-?")) > MAX_NESTED for value in args):
            raise InputError(NESTED)
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for flag in ("--ckpt_path", "--plugin", "--trainer.default_root_dir"):
            early.add_argument(flag, nargs="?")
        flags, _ = early.parse_known_args(args)
        command = next((name for name in args if name in TRAINER_COMMANDS), "")
        if flags.ckpt_path and command:
            root = getattr(flags, "trainer.default_root_dir")
            self.use_checkpoint_defaults(command, flags.ckpt_path, root, flags.plugin)
        try:
            self.config = parser.parse_args(args)
            command = self.config.subcommand
            config = self.config[command]
            if config.ckpt_path and not flags.ckpt_path:  # a config file names the checkpoint
                root = config.trainer.default_root_dir
                self.use_checkpoint_defaults(command, config.ckpt_path, root, config.plugin)
                self.config = parser.parse_args(args)
                config = self.config[command]
        except argparse.ArgumentError as error:
            raise InputError(explain(str(error), known_names(self.parsers[command]))) from error
        except RecursionError as error:
            raise InputError(NESTED) from error
        except UnicodeDecodeError as error:
            raise InputError(f"--config: not a text file ({error}).") from error
        if config.ckpt_path:
            config.ckpt_path = str(self.ckpt_path)
            self.check_against_checkpoint(command, args)
        elif command != "fit":
            raise InputError(f"{command} needs --ckpt_path: a path, or best or last.")

    def use_checkpoint_defaults(
        self, command: str, wanted: str, root: str | None, plugin: str | None
    ) -> None:
        """Make the hyperparameters of a checkpoint (a path, best or last) a command's defaults."""
        import_plugin(plugin)
        path = self.ckpt_path = find_checkpoint(wanted, runs_folder(root))
        checkpoint = read_checkpoint(path, plugin)
        self.weights = checkpoint["state_dict"]
        if command == "fit" and path.is_dir():
            raise InputError(
                f"{path} is an export, without the optimizer's state: fit cannot resume from it. "
                "Give the .ckpt file that it was made from."
            )
        self.ckpt_step = int(checkpoint.get("global_step", 0))
        self.wandb_id = checkpoint.get("wandb_id")
        model, self.ckpt_data = (checkpoint[part] for part in HYPERPARAMETERS)
        data = {name: value for name, value in self.ckpt_data.items() if name != INSTANTIATOR_KEY}
        # The data module gives the model its alphabet and context, also without a checkpoint.
        not_flags = ("alphabet", "context", INSTANTIATOR_KEY)
        values = {f"model.{name}": v for name, v in model.items() if name not in not_flags}
        values |= {f"data.{name}": value for name, value in data.items()}
        try:
            self.parsers[command].set_defaults(values)
            self.parsers[command].get_defaults()  # checks the types of classes' arguments
            instantiate_module(CharDataModule, data)
        except Exception as error:  # contradictory values fail in many ways
            other = isinstance(error, KeyError)
            fault = "was written by another version" if other else "does not fit together"
            reason = f"{str(error)[:200]}. Use another checkpoint"
            raise InputError(f"--ckpt_path {path} {fault}: {reason}.") from error

    def check_against_checkpoint(self, command: str, args: Sequence[str]) -> None:
        """Refuse to resume a finished run, and to open a URL that only the checkpoint names."""
        config = self.config[command]
        if command == "fit" and config.trainer.max_steps <= self.ckpt_step:
            raise InputError(
                f"max_steps is {config.trainer.max_steps}, and {self.ckpt_path} is at step "
                f"{self.ckpt_step} already: give a larger --trainer.max_steps."
            )
        corpus = config.data.corpus
        is_other = absolute_name(corpus) != self.ckpt_data["corpus"]
        if is_other and config.data.sha256 == self.ckpt_data["sha256"]:
            config.data.sha256 = None  # it is the sum of the checkpoint's corpus
        is_named = any(arg.split("=")[0] == "--data.corpus" for arg in args)
        untrusted_url = "://" in corpus and not (
            is_other or is_named or download_path(corpus).exists()
        )
        if untrusted_url and command != "predict":
            raise InputError(
                f"{self.ckpt_path} was trained on {corpus}, which is not on this machine: if you "
                f"trust that address, add --data.corpus {corpus}"
            )

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would replace explicit flags by the checkpoint's values."""
