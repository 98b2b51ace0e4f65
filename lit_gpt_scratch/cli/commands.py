"""The commands fit, validate, test and predict, on Lightning's CLI."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_gpt_scratch.checkpoints.formats import import_plugin, limit_parameters
from lit_gpt_scratch.cli.parsing import CheckpointCLI
from lit_gpt_scratch.cli.predict import PredictSettings, TextWriter, make_batches
from lit_gpt_scratch.cli.program import PROGRAM
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.data.windows import Batches, require_divisible_batch
from lit_gpt_scratch.errors import InputError, exit_with_error, is_out_of_memory, require_positive
from lit_gpt_scratch.private_api import WRONG_WEIGHTS
from lit_gpt_scratch.runs import folder as run_folder
from lit_gpt_scratch.runs.callbacks import make_callbacks
from lit_gpt_scratch.runs.loggers import (
    finish_wandb_run,
    get_wandb_run,
    make_loggers,
    resolve_wandb_mode,
)
from lit_gpt_scratch.runs.summary import (
    format_header,
    format_summary,
    print_resume_command,
    run_facts,
)
from lit_gpt_scratch.training.checkpointing import AtomicCheckpointIO, GracefulStop
from lit_gpt_scratch.training.distributed import exit_with_parent, is_rank_zero, report_errors_once
from lit_gpt_scratch.training.hardware import keep_freed_memory
from lit_gpt_scratch.training.module import LitCharLM


class CharCLI(CheckpointCLI):
    """The commands. `fit` makes `folder` for its run, or resumes the run in an existing one."""

    _lock: int | None = None  # a file descriptor; while it is open, other processes stay out

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        import_plugin(config.plugin)
        if config.data.seed is None:
            config.data.seed = int(config.seed_everything)
        counts = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
        require_positive(**{n: config.trainer[n] for n in counts if config.trainer[n] is not None})

    def instantiate_classes(self) -> None:
        with limit_parameters(self.ckpt_path) if self.ckpt_path else contextlib.nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        if self.ckpt_path:  # weights that do not fit are refused before fit writes a file
            self.model.load_state_dict(self.weights)
        config = self.config_init[self.subcommand].trainer
        kwargs |= {"enable_checkpointing": False, "logger": config.logger or False}
        if self.subcommand == "predict":
            kwargs["enable_progress_bar"] = False
        elif self.subcommand == "fit":
            kwargs["enable_progress_bar"] = False  # prepare_run adds another
            self.datamodule.open()
        elif config.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:  # the Trainer refuses a flag
            raise InputError(str(error)) from error
        if self.subcommand == "fit":
            self.prepare_run(trainer)
        return trainer

    def prepare_run(self, trainer: Any) -> None:
        """Prepare the run's folder and all that writes into it, after all checks have passed."""
        self.open_folder(trainer, self.check_run(trainer))
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        config, facts = self.resolved_config(), run_facts(trainer, self.model, self.datamodule)
        self.add_loggers(trainer, config | facts)
        progress_bar = self.config.fit.trainer.enable_progress_bar
        trainer.callbacks += make_callbacks(self.folder, progress_bar, self.wandb_id)
        if run := get_wandb_run(trainer):
            facts["wandb_id"] = run.id
        if trainer.is_global_zero:
            run_folder.write_yaml_files(self.folder, config=config, about=facts)
            print(format_header(self.model, self.datamodule, self.folder), file=sys.stderr)

    def check_run(self, trainer: Any) -> str:
        """Refuse what cannot be trained. Return the run's name."""
        config, data = self.config.fit, self.datamodule
        first = Path(config.config[0].relative) if config.config and config.config[0] else None
        if first:
            run_folder.refuse_truncated_config(first)
        require_divisible_batch(data.batch_size, trainer.num_devices * trainer.num_nodes)
        resolve_wandb_mode(self.config_init.fit.wandb)
        default = run_folder.default_name(first, self.ckpt_path) + "-sample" * data.fell_back
        return config.name or default

    def open_folder(self, trainer: Any, name: str) -> None:
        """Lock and trim the folder of a run of this name to resume, or make a new one."""
        config, checkpoint = self.config.fit, self.ckpt_path
        runs = run_folder.runs_folder(config.trainer.default_root_dir)
        unfinished = None if checkpoint else run_folder.find_unfinished_run(runs / name)
        if unfinished and is_rank_zero():
            print_resume_command(unfinished, f"Notice: {unfinished} is not finished.")
        resumed = run_folder.resume_folder(checkpoint, config.name) if checkpoint else None
        self.folder = resumed or run_folder.new_run_folder(runs, name)
        if trainer.is_global_zero:
            self._lock = run_folder.lock_run_folder(self.folder)
            if resumed:
                run_folder.trim_after_step(self.folder, self.ckpt_step)

    def resolved_config(self) -> dict[str, Any]:
        """Return the config with the corpus that was opened, so that it repeats this run."""
        for key in ("corpus", "sha256", "fallback"):
            self.config.fit.data[key] = self.datamodule.hparams[key]
        config: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return config["fit"]

    def add_loggers(self, trainer: Any, facts: dict[str, Any]) -> None:
        """Log to metrics.csv and W&B, unless --trainer.logger says otherwise."""
        if self.config.fit.trainer.logger is None:
            wandb = self.config_init.fit.wandb
            trainer.loggers = make_loggers(self.folder, facts, wandb, self.wandb_id)

    def fit(self, **kwargs: Any) -> None:
        """Train. If no step was logged or saved before an error, remove the run's folder."""
        keep_freed_memory()
        started = time.time()
        try:
            self.trainer.fit(**kwargs, ckpt_path=self.ckpt_path, weights_only=True)
        except GracefulStop as stop:
            finish_wandb_run(self.trainer)
            done = f"step {self.trainer.global_step:,} of {self.trainer.max_steps:,}"
            print_resume_command(self.folder, f"\nStopped at {done}, and saved.")
            # Other ranks exit with 0: after an error code, Lightning would kill rank 0 too early.
            raise SystemExit(128 + stop.args[0] if is_rank_zero() else 0) from None
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):  # Lightning exits on Ctrl-C
                raise
            print_resume_command(self.folder, "\nStopped at once.")
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception as error:
            written = any((self.folder / name).exists() for name in ("metrics.csv", "checkpoints"))
            if is_rank_zero() and not written:
                finish_wandb_run(self.trainer)
                shutil.rmtree(self.folder, ignore_errors=True)
            if self.ckpt_path and not isinstance(error, InputError):
                self.report_bad_checkpoint(error, started)
            print_resume_command(
                self.folder, "The run failed. Its last complete checkpoint is still on disk."
            )
            raise
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def report_bad_checkpoint(self, error: Exception, started: float) -> None:
        """If training fails before the first save, report the loaded checkpoint as the cause.

        Each part of a wrong state (optimizer, loops, callbacks) fails in its own way at first use.
        """
        saved = (self.folder / "checkpoints").glob("*.ckpt")
        is_explained = is_out_of_memory(error) or WRONG_WEIGHTS in str(error)  # by `main`
        if is_explained or any(path.stat().st_mtime > started for path in saved):
            return
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"resuming from {self.ckpt_path} failed ({type(error).__name__} in "
            f"{Path(place.filename).name}, line {place.lineno}: {str(error)[:200]}). The "
            "checkpoint is damaged, or was saved with other callbacks: give another checkpoint, or "
            "start a new run without --ckpt_path."
        ) from error

    def after_fit(self) -> None:
        finish_wandb_run(self.trainer)
        trainer: Any = self.trainer
        # All processes have the metrics, and all must take part in saving.
        if "val/loss" not in trainer.callback_metrics and not trainer.fast_dev_run:
            trainer.save_checkpoint(run_folder.last_checkpoint(self.folder))
        if trainer.is_global_zero:
            print(format_summary(trainer, self.model, self.datamodule, self.folder))

    def print_eval_header(self) -> None:
        """Print the checkpoint and the corpus; warn if the model was trained on other splits."""
        self.datamodule.setup(self.subcommand)
        if not is_rank_zero():
            return
        data = self.datamodule.hparams
        print(f"{self.ckpt_path} on {data.corpus}", file=sys.stderr)
        for name in ("val_fraction", "test_fraction"):
            before, now = self.ckpt_data[name], data[name]
            if now != before:
                notice = f"Notice: {name} is {now}, in training it was {before}"
                print(f"{notice}: the model may have been trained on this text.", file=sys.stderr)

    before_validate = before_test = print_eval_header  # Lightning calls these by name

    def predict(self, model: LitCharLM, datamodule: CharDataModule) -> None:
        """Print texts that continue the prompts."""
        if self.trainer.num_devices * self.trainer.num_nodes > 1:
            raise InputError("predict takes one device: leave --trainer.devices at 1.")
        config = self.config_init.predict
        settings = PredictSettings(**{f.name: config[f.name] for f in fields(PredictSettings)})
        writer = TextWriter()
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        prompts = make_batches(model, settings, config.seed_everything, writer.print_piece)
        self.trainer.predict(model, Batches(prompts))


@contextlib.contextmanager
def restore_process_state() -> Iterator[None]:
    """Silence Lightning; at the end restore logging levels, warning filters and environment."""
    environment = dict(os.environ)  # Lightning adds PL_GLOBAL_SEED and others
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = {logger: logger.level for logger in loggers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torchmetrics")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
            os.environ.clear()
            os.environ.update(environment)


def main(args: Sequence[str] | None = None) -> CharCLI:
    """Run a command. Return the CLI with its `trainer`, `model`, `datamodule` and `folder`.

    Raises:
        SystemExit: A user's mistake, after one line on standard error.
    """
    try:
        with restore_process_state(), exit_with_parent(), report_errors_once():
            return CharCLI(args)
    except (InputError, MisconfigurationException) as error:
        exit_with_error(PROGRAM, error)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            advice = "reduce --data.batch_size, --data.context or --model.net.width"
            advice += "; for predict, --max_new_tokens or --num_samples."
            reason = str(error)[:200] or "MemoryError"
            exit_with_error(PROGRAM, f"there is not enough memory ({reason}): {advice}")
        if WRONG_WEIGHTS in str(error):
            advice = (
                "leave out flags and configs that change its size (--model.net, --data.context)."
            )
            exit_with_error(PROGRAM, f"the checkpoint's weights do not fit this network: {advice}")
        raise
