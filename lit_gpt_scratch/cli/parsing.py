"""What the command line takes, and how a checkpoint's values become its defaults."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_module

from lit_gpt_scratch.checkpoints.reading import HYPERPARAMETERS, import_plugin, read_checkpoint
from lit_gpt_scratch.cli.messages import Parser
from lit_gpt_scratch.cli.predict import PredictSettings
from lit_gpt_scratch.cli.program import PROGRAM, TRAINER_COMMANDS
from lit_gpt_scratch.data.corpus import absolute_name, download_path
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.folder import find_checkpoint, runs_folder
from lit_gpt_scratch.runs.wandb_logger import WandbSettings
from lit_gpt_scratch.training.hardware import fastest_precision
from lit_gpt_scratch.training.module import LitCharLM

TRAINER_DEFAULTS = {
    "max_steps": 700,
    "max_epochs": -1,  # one endless epoch, so that only steps count
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "log_every_n_steps": 50,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module shards by itself
}
MOST_NESTED = 10_000
NESTED = "an argument nests too deep: put a long prompt into a file, and give --prompt_file."


class CheckpointCLI(LightningCLI):
    """Lightning's CLI, with a checkpoint's values as the defaults of all flags."""

    wandb_id: str | None = None  # of the run that this one resumes

    def __init__(self, args: Sequence[str] | None = None) -> None:
        described = {
            name: {"usage": f"{PROGRAM} {name} [options]", "description": text}
            for name, text in TRAINER_COMMANDS.items()
        }
        super().__init__(
            LitCharLM,
            CharDataModule,
            seed_everything_default=1337,
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={
                "prog": PROGRAM,
                "description": "Train, compare and sample character-level language models.",
                "allow_abbrev": False,
                **described,
            },
            trainer_defaults=TRAINER_DEFAULTS | {"precision": fastest_precision()},
            args=list(sys.argv[1:] if args is None else args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Arguments of the Trainer's methods that are not flags."""
        ours = {"model", "datamodule", "weights_only"}
        loaders = {"dataloaders", "train_dataloaders", "val_dataloaders", "verbose"}
        return {name: ours | loaders | {"return_predictions"} for name in TRAINER_COMMANDS}

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        listed: Any = self.parser._subcommands_action
        for command in listed._choices_actions:  # Lightning lists its Trainer's own docstrings
            command.help = TRAINER_COMMANDS[command.dest]
        fit, predict = (self._subcommand_parsers[name] for name in ("fit", "predict"))
        fit.add_argument(
            "--name", type=str | None, help="Name of the run. The default is the first config's."
        )
        fit.add_class_arguments(WandbSettings, "wandb")
        predict.add_class_arguments(PredictSettings)
        # One character at a time, casts cost more than they save.
        predict.set_defaults({"trainer.devices": 1, "trainer.precision": "32-true"})

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(CharDataModule, "data")
        parser.add_lightning_class_args(LitCharLM, "model")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--plugin",
            type=str | None,
            help="A module of yours whose classes a checkpoint may name.",
        )
        parser.link_arguments("data.alphabet", "model.alphabet", apply_on="instantiate")
        parser.link_arguments("data.context", "model.context", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Every text is tried as YAML, whose reader in C goes down until its stack ends.
        if any(sum(map(value.count, "[{-?")) > MOST_NESTED for value in args):
            raise InputError(NESTED)
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for flag in ("--ckpt_path", "--plugin", "--trainer.default_root_dir"):
            early.add_argument(flag, nargs="?")
        known, _ = early.parse_known_args(args)
        subcommand = next((name for name in args if name in self.subcommands()), None)
        if known.ckpt_path and subcommand:
            root = getattr(known, "trainer.default_root_dir")
            self._adopt(subcommand, known.ckpt_path, root, known.plugin)
        try:
            self.config = parser.parse_args(args)
            subcommand = self.config.subcommand
            ours = self.config[subcommand]
            if ours.ckpt_path and not known.ckpt_path:  # it came from a YAML file
                self._adopt(subcommand, ours.ckpt_path, ours.trainer.default_root_dir, ours.plugin)
                self.config = parser.parse_args(args)
        except RecursionError as error:
            raise InputError(NESTED) from error
        except UnicodeDecodeError as error:
            raise InputError(f"--config: not a text file ({error}).") from error
        ours = self.config[subcommand]
        if ours.ckpt_path:
            ours.ckpt_path = str(self.ckpt_path)
            if subcommand == "fit" and ours.trainer.max_steps <= self.ckpt_step:
                raise InputError(
                    f"max_steps is {ours.trainer.max_steps}, and {self.ckpt_path} is at step "
                    f"{self.ckpt_step} already: give a larger --trainer.max_steps."
                )
            other = absolute_name(ours.data.corpus) != self.ckpt_data["corpus"]
            if other and ours.data.sha256 == self.ckpt_data["sha256"]:
                ours.data.sha256 = None  # of the checkpoint's corpus: it says nothing of another
            url, named = ours.data.corpus, any(a.split("=")[0] == "--data.corpus" for a in args)
            strangers = "://" in url and not (other or named or download_path(url).exists())
            if strangers and subcommand != "predict":
                raise InputError(
                    f"{self.ckpt_path} was trained on {url}, which is not on this machine: if you "
                    f"trust that address, add --data.corpus {url}"
                )
        elif subcommand != "fit":
            raise InputError(f"{subcommand} needs --ckpt_path: a path, or best or last.")

    def _adopt(self, subcommand: str, wanted: str, root: str | None, plugin: str | None) -> None:
        """Make a checkpoint's hyperparameters the defaults of a subcommand."""
        import_plugin(plugin)
        self.ckpt_path = find_checkpoint(wanted, runs_folder(root))
        checkpoint = read_checkpoint(self.ckpt_path, plugin)
        if subcommand != "fit":
            self.weights = checkpoint["state_dict"]
        elif self.ckpt_path.is_dir():
            raise InputError(
                f"{self.ckpt_path} is an export, without the optimizer's state that fit goes on "
                "from: give the .ckpt file that it was made of."
            )
        self.ckpt_step = int(checkpoint.get("global_step", 0))
        self.wandb_id = checkpoint.get("wandb_id")
        model, self.ckpt_data = (checkpoint[part] for part in HYPERPARAMETERS)
        # The alphabet and the context come from the data, as they do without a checkpoint.
        values = {f"model.{k}": v for k, v in model.items() if k not in ("alphabet", "context")}
        values |= {f"data.{k}": v for k, v in self.ckpt_data.items()}
        inner = {key: value for key, value in values.items() if not key.endswith("._instantiator")}
        ours = self._subcommand_parsers[subcommand]
        try:
            ours.set_defaults(inner)
            ours.get_defaults()  # with the types of what classes take
            known = {k: v for k, v in self.ckpt_data.items() if k != "_instantiator"}
            instantiate_module(CharDataModule, known)
        except Exception as error:  # its parts contradict each other, in any of a hundred ways
            other = isinstance(error, KeyError)
            fault = "is of another version of this program" if other else "does not fit together"
            raise InputError(f"checkpoint {self.ckpt_path} {fault}: {str(error)[:200]}.") from error

    def _parse_ckpt_path(self) -> None:
        """Done above: Lightning would let the checkpoint's values overrule explicit flags."""
