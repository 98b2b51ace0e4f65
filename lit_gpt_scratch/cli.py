"""The command line: fit, validate, test and predict, on Lightning's CLI."""

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_module

from lit_gpt_scratch.checkpoint import (
    HYPERPARAMETERS,
    find_checkpoint,
    import_plugin,
    no_larger_than,
    read_checkpoint,
)
from lit_gpt_scratch.corpus import absolute
from lit_gpt_scratch.data import Batches, CharDataModule, check_processes
from lit_gpt_scratch.errors import InputError, refuse, require_positive
from lit_gpt_scratch.machine import fastest_precision, keep_freed_memory
from lit_gpt_scratch.messages import Parser
from lit_gpt_scratch.module import LitCharLM
from lit_gpt_scratch.predict import PredictSettings, TextWriter, prepare
from lit_gpt_scratch.recording import (
    WandbSettings,
    finish_wandb,
    is_first_process,
    make_wandb_logger,
    wandb_mode,
    wandb_run,
)
from lit_gpt_scratch.runs import (
    about,
    default_name,
    describe,
    folder_to_go_on_in,
    last_checkpoint,
    make_callbacks,
    new_run_folder,
    runs_folder,
    say_how_to_go_on,
    summarize,
    unfinished,
    write_facts,
)
from lit_gpt_scratch.saving import MetricsCSV, Stopped, WholeCheckpointIO, cut_after, hold

PROGRAM = "lit-gpt-scratch"
COMMANDS = {
    "fit": "Train a model; its files go into runs/NAME/version_N.",
    "validate": "The exact loss of a checkpoint on the validation split.",
    "test": "The exact loss of a checkpoint on the test split, where its corpus has one.",
    "predict": "Print texts that a checkpoint writes.",
}
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


class CharCLI(LightningCLI):
    """Lightning's CLI with a checkpoint's values as defaults and a folder for each run."""

    wandb_id: str | None = None  # of the run that this one resumes
    _held: int | None = None  # what keeps other processes out of the run's folder

    def __init__(self, args: Sequence[str] | None = None) -> None:
        described = {
            name: {"usage": f"{PROGRAM} {name} [options]", "description": text}
            for name, text in COMMANDS.items()
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
        return {name: ours | loaders | {"return_predictions"} for name in COMMANDS}

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        listed: Any = self.parser._subcommands_action
        for command in listed._choices_actions:  # Lightning lists its Trainer's own docstrings
            command.help = COMMANDS[command.dest]
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

    # Parsing: a checkpoint's values become the defaults, before explicit flags are read.

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
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
            other = absolute(ours.data.corpus) != self.ckpt_data["corpus"]
            if other and ours.data.sha256 == self.ckpt_data["sha256"]:
                ours.data.sha256 = None  # of the checkpoint's corpus: it says nothing of another
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

    # Running

    def before_instantiate_classes(self) -> None:
        ours = self.config[self.subcommand]
        import_plugin(ours.plugin)
        if ours.data.seed is None:
            ours.data.seed = int(ours.seed_everything)
        counts = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
        require_positive(**{c: ours.trainer[c] for c in counts if ours.trainer[c] is not None})

    def instantiate_classes(self) -> None:
        resumed = self.config[self.subcommand].ckpt_path
        with no_larger_than(self.ckpt_path) if resumed else nullcontext():
            super().instantiate_classes()
        if self.subcommand != "fit":
            self.model.load_state_dict(self.weights)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        ours = self.config[self.subcommand]
        # A run's folder is made last, when all that can be refused has been.
        logger = self.config_init[self.subcommand].trainer.logger
        kwargs |= {"enable_checkpointing": False, "logger": logger or False}
        if self.subcommand == "predict":
            kwargs |= {"callbacks": [TextWriter()], "enable_progress_bar": False}
        elif self.subcommand == "fit":
            kwargs["enable_progress_bar"] = False  # for ours
            self.datamodule.open()
        elif ours.trainer.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # Lightning's word for a flag of its own that cannot be
            raise InputError(str(error)) from error
        if self.subcommand == "fit":
            self._make_run(trainer)
        return trainer

    def _make_run(self, trainer: Any) -> None:
        """Make the run's folder, and what writes into it."""
        ours = self.config.fit
        data = self.datamodule
        first = Path(ours.config[0].relative) if ours.config and ours.config[0] else None
        resumed = self.ckpt_path if ours.ckpt_path else None
        name = ours.name or default_name(first, resumed) + "-sample" * data.fell_back
        check_processes(data.batch_size, trainer.num_devices * trainer.num_nodes)
        wandb_mode(self.config_init.fit.wandb)
        runs = runs_folder(ours.trainer.default_root_dir)
        if not resumed and (left := unfinished(runs / name)):
            say_how_to_go_on(left, f"Notice: {left} is not finished.")
        going_on = folder_to_go_on_in(resumed, ours.name) if resumed else None
        self.folder = going_on or new_run_folder(runs, name)
        if trainer.is_global_zero:
            self._held = hold(self.folder)
            if going_on:
                cut_after(self.folder, self.ckpt_step)
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
        # What was used, not only what was asked for: the seed, and the text that was opened.
        for key in ("corpus", "sha256", "fallback"):
            ours.data[key] = data.hparams[key]
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))["fit"]
        facts = about(trainer, self.model, data)
        if ours.trainer.logger is None:
            wandb = self.config_init.fit.wandb
            trainer.loggers = [
                MetricsCSV(self.folder),
                *make_wandb_logger(self.folder, config | facts, wandb, self.wandb_id),
            ]
        trainer.callbacks += make_callbacks(
            self.folder, ours.trainer.enable_progress_bar, self.wandb_id
        )
        if run := wandb_run(trainer):
            facts["wandb_id"] = run.id
        if trainer.is_global_zero:
            write_facts(self.folder, config=config, about=facts)
            print(describe(self.model, data, self.folder), file=sys.stderr)

    def fit(self, **kwargs: Any) -> None:
        """Train; a run that is refused before its first step leaves no folder."""
        keep_freed_memory()
        try:
            self.trainer.fit(**kwargs)
        except Stopped as stop:
            finish_wandb(self.folder)
            done = f"step {self.trainer.global_step:,} of {self.trainer.max_steps:,}"
            say_how_to_go_on(self.folder, f"\nStopped at {done}, and saved.")
            raise SystemExit(128 + stop.number) from None
        except Exception:
            written = any((self.folder / name).exists() for name in ("metrics.csv", "checkpoints"))
            if is_first_process() and not written:  # only its own, and only while it is empty
                finish_wandb(self.folder)
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                say_how_to_go_on(self.folder, "The last good checkpoint is there.")
            raise
        finally:
            if self._held is not None:
                os.close(self._held)

    def _tell(self) -> None:
        """Say what is about to be measured, and whether it is what the checkpoint left out."""
        self.datamodule.setup(self.subcommand)
        ours, data = self.config[self.subcommand], self.datamodule.hparams
        print(f"{ours.ckpt_path} on {data.corpus}", file=sys.stderr)
        for name in ("val_fraction", "test_fraction"):
            if data[name] != self.ckpt_data[name]:
                print(
                    f"Notice: {name} is {data[name]}, in training it was {self.ckpt_data[name]}: "
                    "the model may have been trained on this text.",
                    file=sys.stderr,
                )

    before_validate = before_test = _tell

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # But for fit, what is needed of a checkpoint has been loaded, from a file or a folder.
        path = {"weights_only": True} if subcommand == "fit" else {"ckpt_path": None}
        return super()._prepare_subcommand_kwargs(subcommand) | path

    def after_fit(self) -> None:
        finish_wandb(self.folder)
        trainer: Any = self.trainer
        # Asked of the metrics, which all processes share; only the first knows the folder.
        if "val/loss" not in trainer.callback_metrics and not trainer.fast_dev_run:
            trainer.save_checkpoint(last_checkpoint(self.folder))
        if trainer.is_global_zero:
            print(summarize(trainer, self.model, self.datamodule, self.folder))

    def predict(self, model: LitCharLM, datamodule: CharDataModule, **checkpoint: Any) -> None:
        """Print texts that continue the prompt."""
        ours = self.config_init.predict
        settings = PredictSettings(**{f.name: ours[f.name] for f in fields(PredictSettings)})
        prompts = prepare(model, settings, ours.seed_everything)
        self.trainer.predict(model, Batches(prompts), **checkpoint)


def main(args: Sequence[str] | None = None) -> CharCLI:
    """Run the program. Returns the CLI with its `trainer`, `model`, `datamodule` and `folder`.

    Raises:
        SystemExit: A user's mistake, after one line on standard error.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for module in ("lightning", "torchmetrics"):
        warnings.filterwarnings("ignore", module=module)
    try:
        return CharCLI(args)
    except (InputError, MisconfigurationException) as error:
        refuse(PROGRAM, error)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        refuse(
            PROGRAM, "the checkpoint's weights do not fit this network: do not change its sizes."
        )


def run() -> None:
    """`main`, as a process: its ends that are nobody's mistake are quiet."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever reads us has read enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
