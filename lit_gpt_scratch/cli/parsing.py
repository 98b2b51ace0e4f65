"""The flags of fit, validate, test and predict. A checkpoint's values become their defaults."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_module

from lit_gpt_scratch.checkpoints.formats import HYPERPARAMETERS, read_checkpoint
from lit_gpt_scratch.checkpoints.plugins import import_plugin, modules_of
from lit_gpt_scratch.cli.flags import PAGES, check_effects
from lit_gpt_scratch.cli.messages import HelpPage, Parser, explain, known_names, with_flags
from lit_gpt_scratch.cli.predict import PredictSettings
from lit_gpt_scratch.cli.program import TRAINER_COMMANDS, own_configs
from lit_gpt_scratch.data.corpus import absolute_name, download_path
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError, raise_user_bug
from lit_gpt_scratch.private_api import INSTANTIATOR_KEY
from lit_gpt_scratch.runs.folder import runs_folder
from lit_gpt_scratch.runs.listing import find_checkpoint
from lit_gpt_scratch.runs.loggers import WandbSettings
from lit_gpt_scratch.shell import PROGRAM
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


class ConfigAction(ActionConfigFile):
    """`--config`: a file, or the name of a config that comes with the program."""

    def __call__(self, parser: Any, cfg: Any, values: Any, *option: Any) -> None:
        super().__call__(parser, cfg, str(find_config(values)), *option)  # type: ignore[no-untyped-call]


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
        parser = self.parser = Parser(
            dump_header=[f"lightning.pytorch=={lightning.__version__}"],
            prog=PROGRAM,
            usage=f"{PROGRAM} {self.command} [options]",
            description=TRAINER_COMMANDS[self.command],
            allow_abbrev=False,
            exit_on_error=False,
        )
        parser.command = self.command
        for page in PAGES:
            parser.add_argument(f"--help.{page}", action=HelpPage)
        config_help = "A YAML file, or the name of a config of the program, such as multi_head."
        parser.add_argument("-c", "--config", action=ConfigAction, help=config_help)
        ckpt_help = "Resume from" if self.command == "fit" else "Required: an export,"
        ckpt_help += " a .ckpt file, a run's folder, or best or last of the newest run in runs/."
        parser.add_argument("--ckpt_path", type=str | None, help=ckpt_help)
        if self.command == "predict":
            parser.add_class_arguments(PredictSettings, as_group=False)
        name_help = "Name of the run; default: the config's file name."
        parser.add_argument("--name", type=str | None, help=name_help)
        seed_help = "Seed of all random numbers. true: a random seed. false: none for the weights."
        parser.add_argument("--seed_everything", type=bool | int, default=1337, help=seed_help)
        plugin_help = "Your own module, or its file, with classes that flags or checkpoints name."
        parser.add_argument("--plugin", type=str | None, help=plugin_help)
        parser.add_lightning_class_args(CharDataModule, "data")
        parser.add_lightning_class_args(LitCharLM, "model")
        parser.link_arguments("data.alphabet", "model.alphabet", apply_on="instantiate")
        parser.link_arguments("data.context", "model.context", apply_on="instantiate")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({"trainer": TRAINER_DEFAULTS | {"precision": fastest_precision()}})
        # Last, as refuse_truncated_config expects.
        parser.add_class_arguments(WandbSettings, "wandb")
        if self.command == "predict":
            # bf16 is slower here: for one character at a time, casts cost more than they save.
            parser.set_defaults({"trainer.devices": 1, "trainer.precision": "32-true"})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags. If they name a checkpoint, its values become the defaults first."""
        parse = parser.parse_args if isinstance(args, list) else parser.parse_object
        args = self.args = args if isinstance(args, list) else plain_mapping(args)
        flags = early_flags(args)
        plugin = import_plugin(flags.plugin)  # the classes of other flags may be in it
        if flags.ckpt_path:
            self.use_checkpoint_defaults(flags)
        try:
            with modules_of(Path.cwd()):  # of classes that the user names
                self.config = parse(args)
            if self.config.ckpt_path and not flags.ckpt_path:  # a config file names it
                self.use_checkpoint_defaults(self.config)
                self.config = parse(args)
        except argparse.ArgumentError as error:
            raise_user_bug(error)
            raise InputError(explain(str(error), known_names(parser), plugin)) from error
        except RecursionError as error:
            raise InputError(NESTED) from error
        check_effects(self.command, args)
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
        path = self.ckpt_path = find_checkpoint(
            flags.ckpt_path, runs, "last" if self.command == "fit" else "best"
        )
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
            raise_user_bug(error)
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
    found: Any = Namespace()  # type: ignore[no-untyped-call]
    if isinstance(args, list):
        # The parser reads every value as YAML too, and a deeply nested one overflows the C stack.
        if any(sum(map(value.count, "[{-?")) > MAX_NESTED for value in args):
            raise InputError(NESTED)
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--config", "-c", action="append", nargs="?", default=[])
        for flag in ("--ckpt_path", "--plugin", "--trainer.default_root_dir"):
            early.add_argument(flag, nargs="?")
        early.parse_known_args(args, found)
    else:
        found.config = [args.get("config")]
        found["trainer.default_root_dir"] = args.get("trainer", {}).get("default_root_dir")
        found.ckpt_path, found.plugin = args.get("ckpt_path"), args.get("plugin")
    plugins = [read_config(name).get("plugin") for name in found.config if name]
    found.plugin = found.plugin or next(filter(None, reversed(plugins)), None)
    for name in ("ckpt_path", "plugin"):
        if not isinstance(found[name], str | None):
            raise InputError(f"--{name} is {found[name]!r}: it must be text.")
    return found


def plain_mapping(values: Any) -> dict[str, Any]:
    """Return flags as nested dicts, in which a config has its path."""
    plain = require_groups(as_dicts(values), "the value of the command")
    if isinstance(config := plain.get("config"), list) and len(config) <= 1:
        plain["config"] = config = next(iter(config), None)
    if not isinstance(config, str | None):
        raise InputError(f"config is {config!r}: give one file, or the name of a config.")
    return plain | ({"config": str(find_config(config))} if config else {})


def as_dicts(value: Any) -> Any:
    """Return a value in which nested Namespaces are dicts."""
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return {k: as_dicts(v) for k, v in value.items()} if isinstance(value, dict) else value


def find_config(name: str) -> Path:
    """Return the file that `--config NAME` means: a path, or a config of the program."""
    own = own_configs().get(name.removesuffix(".yaml"))
    return own if own and not Path(name).is_file() else Path(name)


def read_config(name: str) -> dict[str, Any]:
    """Return the flags in a config file. Raise InputError, which names the file, if it has none."""
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path} is not a text in UTF-8 ({error}).") from error
    except OSError as error:
        beside = {file.stem: str(file) for file in Path(name).parent.glob("*.yaml")}
        known = {own: own for own in own_configs()} | beside
        close = get_close_matches(Path(name).stem, known, 1)
        hint = f"Give a file, or a config of the program: {', '.join(own_configs())}."
        hint = f"Did you mean {known[close[0]]}?" if close else hint
        raise InputError(f"--config {name}: {error.strerror}. {hint}") from error
    except yaml.YAMLError as error:
        where = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            where = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise InputError(f"--config {path} is not YAML: {where}.") from error
    except RecursionError as error:
        raise InputError(f"--config {path} has too many nested brackets.") from error
    return require_groups({} if values is None else values, f"--config {path}: the file")


def require_groups(values: Any, place: str) -> dict[str, Any]:
    """Return a mapping of flags. Raise InputError if it is none, or one of its groups is none."""
    groups = {place: values}
    if isinstance(values, dict):
        named = ("data", "model", "trainer")
        groups |= {f"{place} has {name}, which": values[name] for name in named if name in values}
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise InputError(
                f"{name} is {str(group)[:100]!r}. Give flags and their values, as in "
                "`data: {context: 64}`."
            )
    return values
