"""The flags of fit, validate, test and predict. A checkpoint's values become their defaults."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_module

from lit_gpt_scratch.checkpoints.formats import HYPERPARAMETERS, import_plugin, read_checkpoint
from lit_gpt_scratch.cli.flags import check_effects
from lit_gpt_scratch.cli.messages import Parser, explain, known_names, with_flags
from lit_gpt_scratch.cli.predict import PredictSettings
from lit_gpt_scratch.cli.program import PROGRAM, TRAINER_COMMANDS
from lit_gpt_scratch.data.corpus import absolute_name, download_path
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY
from lit_gpt_scratch.runs.folder import find_checkpoint, read_mapping, runs_folder
from lit_gpt_scratch.runs.loggers import WandbSettings
from lit_gpt_scratch.training.hardware import fastest_precision
from lit_gpt_scratch.training.module import LitCharLM

TRAINER_DEFAULTS = {
    "max_steps": 700,
    "max_epochs": -1,  # no limit
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
    """Lightning's CLI, where --ckpt_path makes a checkpoint's values the defaults of all flags.

    Only the parser of one command is built. The flags are a list, or their values in a dict or a
    Namespace.
    """

    config: Any = None  # the values of all flags, once they are parsed
    ckpt_path: Path | None = None  # the checkpoint; if there is one, the values below are set
    ckpt_step: int  # the optimizer step that it was saved at
    ckpt_data: dict[str, Any]  # the hyperparameters of its data module
    weights: dict[str, Any]  # its state_dict
    wandb_id: str | None = None  # the id of its W&B run

    def __init__(self, command: str, flags: Any) -> None:
        self.command = command
        with self.name_flags():
            super().__init__(
                LitCharLM,
                CharDataModule,
                save_config_callback=None,
                auto_configure_optimizers=False,
                parser_class=Parser,
                args=flags,
                run=False,
            )

    @contextmanager
    def name_flags(self) -> Iterator[None]:
        """Let errors inside this `with` block name flags: --model.net.width instead of width."""
        try:
            yield
        except InputError as error:
            raise InputError(with_flags(str(error), self.config or {})) from error

    def setup_parser(self, *_: Any) -> None:
        """Add all arguments, in the order of the help and of config.yaml."""
        parser: Any = self.init_parser(
            prog=PROGRAM,
            usage=f"{PROGRAM} {self.command} [options]",
            description=TRAINER_COMMANDS[self.command],
            allow_abbrev=False,
            exit_on_error=False,
        )
        seed_help = "Seed of all random numbers. true: a random seed. false: none for the weights."
        parser.add_argument("--seed_everything", type=bool | int, default=1337, help=seed_help)
        parser.add_lightning_class_args(CharDataModule, "data")
        parser.add_lightning_class_args(LitCharLM, "model")
        parser.link_arguments("data.alphabet", "model.alphabet", apply_on="instantiate")
        parser.link_arguments("data.context", "model.context", apply_on="instantiate")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({"trainer": TRAINER_DEFAULTS | {"precision": fastest_precision()}})
        plugin_help = "Your own module, if the run or the checkpoint uses its classes."
        parser.add_argument("--plugin", type=str | None, help=plugin_help)
        ckpt_help = "A .ckpt file, or best or last: the newest such file in runs/."
        ckpt_help += " fit resumes from it." if self.command == "fit" else " Required."
        parser.add_argument("--ckpt_path", type=str | None, help=ckpt_help)
        name_help = "Name of the run; default: the config's file name."
        parser.add_argument("--name", type=str | None, help=name_help)
        parser.add_class_arguments(WandbSettings, "wandb")
        if self.command == "predict":
            parser.add_class_arguments(PredictSettings)
            # bf16 is slower here: for one character at a time, casts cost more than they save.
            parser.set_defaults({"trainer.devices": 1, "trainer.precision": "32-true"})
        parser.command, self.parser = self.command, parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags. If they name a checkpoint, its values become the defaults first."""
        parse = parser.parse_args if isinstance(args, list) else parser.parse_object
        self.args = args
        flags = early_flags(args)
        import_plugin(flags.plugin)  # the classes of other flags may be in it
        if flags.ckpt_path:
            self.use_checkpoint_defaults(flags)
        try:
            self.config = parse(args)
            if self.config.ckpt_path and not flags.ckpt_path:  # a config file names it
                self.use_checkpoint_defaults(self.config)
                self.config = parse(args)
        except argparse.ArgumentError as error:
            raise InputError(explain(str(error), known_names(parser))) from error
        except RecursionError as error:
            raise InputError(NESTED) from error
        except UnicodeDecodeError as error:
            raise InputError(f"--config: not a text file ({error}).") from error
        check_effects(parser, self.command, self.config, args)
        trainer = self.config.trainer
        if (trainer.max_epochs or -1) > 0 or trainer.max_time:
            if "trainer.max_steps" not in parse(args, defaults=False):
                trainer.max_steps = -1  # no limit: its default is replaced
        elif self.command == "fit" and trainer.max_steps < 1:
            raise InputError(
                f"--trainer.max_steps is {trainer.max_steps}: give at least 1, or "
                "--trainer.max_epochs or --trainer.max_time."
            )
        if self.ckpt_path:
            self.check_against_checkpoint()
        elif self.command != "fit":
            raise InputError(f"{self.command} needs --ckpt_path: a path, or best or last.")

    def use_checkpoint_defaults(self, flags: Namespace) -> None:
        """Make the hyperparameters of the checkpoint that `flags` name the parser's defaults."""
        runs = runs_folder(flags.trainer.default_root_dir)
        path = self.ckpt_path = find_checkpoint(flags.ckpt_path, runs)
        checkpoint = read_checkpoint(path, flags.plugin)
        if self.command == "fit" and path.is_dir():
            raise InputError(
                f"{path} is an export, without the optimizer's state: fit cannot resume from it. "
                "Give the .ckpt file that it was made from."
            )
        self.weights, self.wandb_id = checkpoint["state_dict"], checkpoint.get("wandb_id")
        self.ckpt_step = int(checkpoint.get("global_step", 0))
        model, data = (dict(checkpoint[part]) for part in HYPERPARAMETERS)
        # The data module gives the model its alphabet and context, also without a checkpoint.
        for name in (INSTANTIATOR_KEY, "alphabet", "context"):
            model.pop(name, None)
        data.pop(INSTANTIATOR_KEY, None)
        self.ckpt_data = data
        try:
            self.parser.set_defaults({"model": model, "data": data})
            self.parser.get_defaults()  # checks the types of classes' arguments
            instantiate_module(CharDataModule, data)
        except Exception as error:  # contradictory values fail in many ways
            other = isinstance(error, KeyError)
            fault = "was written by another version" if other else "does not fit together"
            reason = f"{str(error)[:200]}. Use another checkpoint"
            raise InputError(f"--ckpt_path {path} {fault}: {reason}.") from error

    def check_against_checkpoint(self) -> None:
        """Refuse to resume a finished run, and to open a URL that only the checkpoint names."""
        config = self.config
        config.ckpt_path = str(self.ckpt_path)
        if self.command == "fit" and 0 < config.trainer.max_steps <= self.ckpt_step:
            raise InputError(
                f"max_steps is {config.trainer.max_steps}, and {self.ckpt_path} is at step "
                f"{self.ckpt_step} already: give a larger --trainer.max_steps."
            )
        corpus = config.data.corpus
        is_other = absolute_name(corpus) != self.ckpt_data["corpus"]
        if is_other and config.data.sha256 == self.ckpt_data["sha256"]:
            config.data.sha256 = None  # it is the sum of the checkpoint's corpus
        is_named = any(str(arg).split("=")[0] == "--data.corpus" for arg in self.args)
        is_trusted = is_other or is_named or download_path(str(corpus)).exists()
        if "://" in str(corpus) and not is_trusted and self.command != "predict":
            raise InputError(
                f"{self.ckpt_path} was trained on {corpus}, which is not on this machine: if you "
                f"trust that address, add --data.corpus {corpus}"
            )


def early_flags(args: Any) -> Namespace:
    """Return the flags that the parser's defaults depend on."""
    if not isinstance(args, list):
        trainer = args.get("trainer") or {}
        flags = {name: args.get(name) for name in ("ckpt_path", "plugin")}
        flags |= {"trainer.default_root_dir": trainer.get("default_root_dir")}
        return Namespace(flags)  # type: ignore[no-untyped-call]
    # The parser reads every value as YAML too, and a deeply nested one overflows the C stack.
    if any(sum(map(value.count, "[{-?")) > MAX_NESTED for value in args):
        raise InputError(NESTED)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", "-c", action="append", default=[])
    for flag in ("--ckpt_path", "--plugin", "--trainer.default_root_dir"):
        early.add_argument(flag, nargs="?")
    found, _ = early.parse_known_args(args, Namespace())  # type: ignore[no-untyped-call]
    plugins = [read_mapping(Path(config)).get("plugin") for config in found.config]
    found.plugin = found.plugin or next(filter(None, reversed(plugins)), None)
    return found
