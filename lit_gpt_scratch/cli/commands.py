"""The command line: fit, validate, test and predict, on Lightning's CLI."""

import logging
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_gpt_scratch.checkpoints.reading import import_plugin, limit_parameters
from lit_gpt_scratch.cli.parsing import CheckpointCLI
from lit_gpt_scratch.cli.predict import PredictSettings, TextWriter, make_batches
from lit_gpt_scratch.cli.program import PROGRAM
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.data.windows import Batches, require_divisible_batch
from lit_gpt_scratch.errors import InputError, exit_with_error, is_out_of_memory, require_positive
from lit_gpt_scratch.runs.callbacks import make_callbacks
from lit_gpt_scratch.runs.folder import (
    default_name,
    find_unfinished_run,
    last_checkpoint,
    lock_run_folder,
    new_run_folder,
    refuse_truncated_config,
    resume_folder,
    runs_folder,
    write_yaml_files,
)
from lit_gpt_scratch.runs.metrics_logger import MetricsCSV, trim_after_step
from lit_gpt_scratch.runs.summary import (
    format_header,
    format_summary,
    print_resume_command,
    run_facts,
)
from lit_gpt_scratch.runs.wandb_logger import (
    finish_wandb_run,
    get_wandb_run,
    make_wandb_loggers,
    resolve_wandb_mode,
)
from lit_gpt_scratch.training.checkpointing import AtomicCheckpointIO, GracefulStop
from lit_gpt_scratch.training.distributed import exit_with_parent, is_rank_zero, report_errors_once
from lit_gpt_scratch.training.hardware import keep_freed_memory
from lit_gpt_scratch.training.module import LitCharLM


class CharCLI(CheckpointCLI):
    """The commands, and a folder for each run."""

    _held: int | None = None  # what keeps other processes out of the run's folder

    def before_instantiate_classes(self) -> None:
        ours = self.config[self.subcommand]
        import_plugin(ours.plugin)
        if ours.data.seed is None:
            ours.data.seed = int(ours.seed_everything)
        counts = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
        require_positive(**{c: ours.trainer[c] for c in counts if ours.trainer[c] is not None})

    def instantiate_classes(self) -> None:
        resumed = self.config[self.subcommand].ckpt_path
        with limit_parameters(self.ckpt_path) if resumed else nullcontext():
            super().instantiate_classes()
        if self.subcommand != "fit":
            self.model.load_state_dict(self.weights)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        ours = self.config[self.subcommand]
        # A run's folder is made last, when all that can be refused has been.
        logger = self.config_init[self.subcommand].trainer.logger
        kwargs |= {"enable_checkpointing": False, "logger": logger or False}
        if self.subcommand == "predict":
            kwargs["enable_progress_bar"] = False
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
        if first:
            refuse_truncated_config(first)
        resumed = self.ckpt_path if ours.ckpt_path else None
        name = ours.name or default_name(first, resumed) + "-sample" * data.fell_back
        require_divisible_batch(data.batch_size, trainer.num_devices * trainer.num_nodes)
        resolve_wandb_mode(self.config_init.fit.wandb)
        runs = runs_folder(ours.trainer.default_root_dir)
        if not resumed and is_rank_zero() and (left := find_unfinished_run(runs / name)):
            print_resume_command(left, f"Notice: {left} is not finished.")
        going_on = resume_folder(resumed, ours.name) if resumed else None
        self.folder = going_on or new_run_folder(runs, name)
        if trainer.is_global_zero:
            self._held = lock_run_folder(self.folder)
            if going_on:
                trim_after_step(self.folder, self.ckpt_step)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        # What was used, not only what was asked for: the seed, and the text that was opened.
        for key in ("corpus", "sha256", "fallback"):
            ours.data[key] = data.hparams[key]
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))["fit"]
        facts = run_facts(trainer, self.model, data)
        if ours.trainer.logger is None:
            wandb = self.config_init.fit.wandb
            trainer.loggers = [
                MetricsCSV(self.folder),
                *make_wandb_loggers(self.folder, config | facts, wandb, self.wandb_id),
            ]
        trainer.callbacks += make_callbacks(
            self.folder, ours.trainer.enable_progress_bar, self.wandb_id
        )
        if run := get_wandb_run(trainer):
            facts["wandb_id"] = run.id
        if trainer.is_global_zero:
            write_yaml_files(self.folder, config=config, about=facts)
            print(format_header(self.model, data, self.folder), file=sys.stderr)

    def fit(self, **kwargs: Any) -> None:
        """Train; a run that is refused before its first step leaves no folder."""
        keep_freed_memory()
        begun = time.time()
        try:
            self.trainer.fit(**kwargs)
        except GracefulStop as stop:
            finish_wandb_run(self.folder)
            done = f"step {self.trainer.global_step:,} of {self.trainer.max_steps:,}"
            print_resume_command(self.folder, f"\nStopped at {done}, and saved.")
            # Lightning kills the first where one of its others ends before it, but for a 0.
            raise SystemExit(128 + stop.signal_number if is_rank_zero() else 0) from None
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            # What Lightning makes of Ctrl-C.
            print_resume_command(self.folder, "\nStopped at once.")
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception as error:
            written = any((self.folder / name).exists() for name in ("metrics.csv", "checkpoints"))
            if is_rank_zero() and not written:  # only its own, and only while it is empty
                finish_wandb_run(self.folder)
                shutil.rmtree(self.folder, ignore_errors=True)
            if self.config.fit.ckpt_path and not isinstance(error, InputError):
                self._blame_checkpoint(error, begun)
            print_resume_command(self.folder, "The last good checkpoint is there.")
            raise
        finally:
            if self._held is not None:
                os.close(self._held)

    def _blame_checkpoint(self, error: Exception, begun: float) -> None:
        """Until all of a checkpoint's state has been used, and saved anew, it is what is wrong.

        That state is of the optimizer, the loops and any callback: each fails in its own way.
        """
        saved = (self.folder / "checkpoints").glob("*.ckpt")
        said_better = is_out_of_memory(error) or "loading state_dict" in str(error)
        if said_better or any(path.stat().st_mtime > begun for path in saved):
            return
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"going on from {self.ckpt_path} failed ({type(error).__name__} in "
            f"{Path(place.filename).name}, line {place.lineno}: {str(error)[:200]}). It is "
            "damaged, or of other callbacks: use another, or leave --ckpt_path out."
        ) from error

    def _tell(self) -> None:
        """Say what is about to be measured, and whether it is what the checkpoint left out."""
        self.datamodule.setup(self.subcommand)
        if not is_rank_zero():
            return
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
        finish_wandb_run(self.folder)
        trainer: Any = self.trainer
        # Asked of the metrics, which all processes share; only the first knows the folder.
        if "val/loss" not in trainer.callback_metrics and not trainer.fast_dev_run:
            trainer.save_checkpoint(last_checkpoint(self.folder))
        if trainer.is_global_zero:
            print(format_summary(trainer, self.model, self.datamodule, self.folder))

    def predict(self, model: LitCharLM, datamodule: CharDataModule, **checkpoint: Any) -> None:
        """Print texts that continue the prompt."""
        if self.trainer.num_devices * self.trainer.num_nodes > 1:
            raise InputError("predict takes one device: leave --trainer.devices at 1.")
        ours = self.config_init.predict
        settings = PredictSettings(**{f.name: ours[f.name] for f in fields(PredictSettings)})
        writer = TextWriter()
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        prompts = make_batches(model, settings, ours.seed_everything, writer.print_piece)
        self.trainer.predict(model, Batches(prompts), **checkpoint)


def main(args: Sequence[str] | None = None) -> CharCLI:
    """Run a command. Returns the CLI with its `trainer`, `model`, `datamodule` and `folder`.

    Raises:
        SystemExit: A user's mistake, after one line on standard error.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for module in ("lightning", "torchmetrics"):
        warnings.filterwarnings("ignore", module=module)
    try:
        with exit_with_parent(), report_errors_once():
            return CharCLI(args)
    except (InputError, MisconfigurationException) as error:
        exit_with_error(PROGRAM, error)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            exit_with_error(
                PROGRAM,
                f"there is not enough memory ({str(error)[:200] or 'MemoryError'}): make smaller "
                "what is large, such as --data.batch_size, --data.context, or --model.net.width; "
                "in predict, --max_new_tokens or --num_samples.",
            )
        if "loading state_dict" not in str(error):
            raise
        exit_with_error(
            PROGRAM, "the checkpoint's weights do not fit this network: do not change its sizes."
        )
