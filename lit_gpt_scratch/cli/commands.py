"""The commands fit, validate, test and predict, on Lightning's CLI."""

import contextlib
import shutil
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    LearningRateFinder,
    ProgressBar,
)
from lightning.pytorch.plugins import CheckpointIO

from lit_gpt_scratch.checkpoints.formats import limit_parameters
from lit_gpt_scratch.cli.flags import check_or_replace_values
from lit_gpt_scratch.cli.messages import explain_failure
from lit_gpt_scratch.cli.parsing import CheckpointCLI
from lit_gpt_scratch.cli.predict import PredictSettings, TextWriter, make_batches
from lit_gpt_scratch.cli.process_state import restore_process_state
from lit_gpt_scratch.data.corpus import cache_folder
from lit_gpt_scratch.data.windows import Batches, require_divisible_batch
from lit_gpt_scratch.errors import (
    InputError,
    causes,
    describe_error,
    exit_on_input_error,
    files_of,
    is_bug,
    is_users_mistake,
    raise_user_bug,
)
from lit_gpt_scratch.private_api import keep_compiled_code
from lit_gpt_scratch.runs import callbacks, loggers, provenance, summary
from lit_gpt_scratch.runs import folder as run_folder
from lit_gpt_scratch.runs.console import console_log
from lit_gpt_scratch.shell import PROGRAM
from lit_gpt_scratch.training import progress
from lit_gpt_scratch.training.checkpointing import AtomicCheckpointIO, GracefulStop
from lit_gpt_scratch.training.distributed import (
    exit_with_parent,
    follow_workers,
    is_rank_zero,
    report_errors_once,
)
from lit_gpt_scratch.training.hardware import keep_freed_memory, one_thread_if_small
from lit_gpt_scratch.training.hyperparameters import find_plugin


class CharCLI(CheckpointCLI):
    """The commands, each a method. `fit` makes `folder` for its run, or resumes the run in one."""

    trainer: Any
    progress: Callback | None  # shows progress

    def before_instantiate_classes(self) -> None:
        config = self.config
        if config.data.seed is None:
            config.data.seed = int(config.seed_everything)
        check_or_replace_values(self.command, config)

    def instantiate_classes(self) -> None:
        """Build the objects that the flags describe. A library refuses flags in several ways."""
        try:
            with limit_parameters(self.ckpt_path) if self.ckpt_path else contextlib.nullcontext():
                super().instantiate_classes()
        except InputError:
            raise
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise_user_bug(error)
            # The parser wraps what a class raises.
            places = ((cause, files_of(cause)) for cause in causes(error))
            others = (c for c, files in places if files and "jsonargparse" not in files[0].parts)
            origin = next(others, error)
            is_package_missing = isinstance(origin, ModuleNotFoundError)  # it names pip's command
            if is_bug(origin, "training") and not is_package_missing:
                raise origin from None
            raise InputError(str(origin)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        if self.ckpt_path:  # weights that do not fit are refused before fit writes a file
            self.model.load_state_dict(self.weights)
        config = self.config_init.trainer
        given = as_list(config.callbacks)  # the user's callbacks
        if tuners := [c for c in given if isinstance(c, BatchSizeFinder | LearningRateFinder)]:
            name = type(tuners[0]).__name__
            raise InputError(f"{name} is not supported: start one run for each value instead.")
        if writers := [p for p in as_list(config.plugins) if isinstance(p, CheckpointIO)]:
            name = type(writers[0]).__name__
            raise InputError(
                f"--trainer.plugins is {name}: fit has its own for checkpoints. Leave it out."
            )
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        bar = config.enable_progress_bar
        if bar is None:
            bar = has_bar or sys.stdout.isatty()
        # fit adds callbacks of its own later; predict prints its texts only.
        self.progress = None if has_bar else progress.ProgressBar() if bar else progress.LogLines()
        self.is_saving = config.enable_checkpointing is not False
        has_checkpoints = any(isinstance(callback, Checkpoint) for callback in given)
        kwargs["enable_checkpointing"] = self.is_saving and has_checkpoints
        kwargs["enable_progress_bar"] = bar and (has_bar or self.command in ("validate", "test"))
        # fit has loggers of its own, beside which it adds the user's later.
        kwargs["logger"] = as_list(config.logger) if self.command in ("validate", "test") else []
        return super().instantiate_trainer(**kwargs)

    def open_folder(self) -> BaseFileLock | None:
        """Check that the run can be trained. Create its folder, or trim that of a resumed run.

        Return the lock of the folder in rank 0, and None in other ranks.
        """
        config, data, checkpoint = self.config, self.datamodule, self.ckpt_path
        first = Path(config.config[0].relative) if config.config and config.config[0] else None
        if first:
            run_folder.refuse_truncated_config(first)
        data.open()
        if teacher := self.model.teacher:
            teacher.load(data.alphabet, data.context, config.plugin)
        require_divisible_batch(data.batch_size, self.trainer.num_devices * self.trainer.num_nodes)
        loggers.resolve_wandb_mode(self.config_init.wandb)
        default = run_folder.default_name(first, checkpoint) + "-sample" * data.fell_back
        name = config.name or default
        runs = run_folder.runs_folder(config.trainer.default_root_dir)
        unfinished = None if checkpoint else run_folder.find_unfinished_run(runs / name)
        if unfinished:
            summary.print_resume_command(unfinished, f"Notice: {unfinished} is not finished.")
        resumed = run_folder.resume_folder(checkpoint, config.name) if checkpoint else None
        self.folder = resumed or run_folder.new_run_folder(runs, name)
        if not self.trainer.is_global_zero:
            return None
        lock = run_folder.lock_run_folder(self.folder)
        if resumed:
            run_folder.trim_after_step(self.folder, self.ckpt_step)
        return lock

    def resolve_config(self) -> dict[str, Any]:
        """Return all values, with those of the corpus that was opened."""
        for key in ("corpus", "sha256", "fallback"):
            self.config.data[key] = self.datamodule.hparams[key]
        # The run's own commands must name the module of a class that is not ours.
        self.config.plugin = self.config.plugin or find_plugin(self.model.hparams)
        config: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return config

    def add_recorders(self) -> None:
        """Write config.yaml and about.yaml; give the Trainer all that writes into the folder."""
        trainer, settings = self.trainer, self.config.trainer
        config = self.resolve_config()
        plugin = self.config.plugin
        code = provenance.read_code()
        facts = summary.run_facts(trainer, self.model, self.datamodule, code, plugin)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if settings.logger is not False:
            given = as_list(self.config_init.trainer.logger)
            wandb = self.config_init.wandb, self.wandb_id
            trainer.loggers = loggers.make_loggers(self.folder, config | facts, *wandb, given)
        run = loggers.find_wandb_run(trainer)
        facts["wandb_id"] = run.id if run else self.wandb_id
        trainer.callbacks.append(summary.FitSummary(self.folder, plugin))
        trainer.callbacks += callbacks.make_callbacks(
            self.folder, self.progress, self.is_saving, self.wandb_id
        )
        if trainer.is_global_zero:
            run_folder.write_yaml_files(self.folder, config=config, about=facts)
            if code.changes:
                (self.folder / "changes.diff").write_text(code.changes, encoding="utf-8")
            print(summary.format_header(self.model, self.datamodule, self.folder), file=sys.stderr)

    def fit(self) -> None:
        """Train; keep what is printed in the run's folder."""
        lock = self.open_folder()
        with console_log(self.folder) if lock else contextlib.nullcontext():
            self.train(lock)

    def train(self, lock: BaseFileLock | None) -> None:
        """Train. If no step was logged or saved before an error, remove the run's folder."""
        started, trainer, folder = time.time(), self.trainer, self.folder
        parts = {"model": self.model, "datamodule": self.datamodule}
        try:
            self.add_recorders()
            keep_freed_memory()
            keep_compiled_code(cache_folder() / "compiled")
            characters = self.datamodule.batch_size * self.datamodule.context
            with one_thread_if_small(trainer, self.model.net, characters), follow_workers(trainer):
                trainer.fit(**parts, ckpt_path=self.ckpt_path, weights_only=True)
        except GracefulStop as stop:
            done = progress.step_of_total(trainer)
            if self.is_saving:
                summary.print_resume_command(folder, f"\nStopped at step {done}, and saved.")
            elif is_rank_zero():
                print(f"\nStopped at step {done}. Nothing is saved.", file=sys.stderr)
            # Other ranks exit with 0: after an error code, Lightning would kill rank 0 too early.
            raise SystemExit(stop.code if is_rank_zero() else 0) from None
        except SystemExit as end:
            is_interrupted = isinstance(end.__context__, KeyboardInterrupt)  # Lightning exits then
            summary.print_resume_command(folder, "\nStopped.")
            raise SystemExit(128 + signal.SIGINT if is_interrupted else end.code) from None
        except Exception as error:
            written = any((folder / name).exists() for name in ("metrics.csv", "checkpoints"))
            if lock and not written:
                lock.release()  # Windows removes no open file
                shutil.rmtree(folder, ignore_errors=True)
            self.report_bad_checkpoint(error, started)
            saved = "Its last complete checkpoint is still on disk."
            summary.print_resume_command(folder, f"The run failed. {saved}")
            raise
        finally:
            if lock:
                lock.release()

    def report_bad_checkpoint(self, error: Exception, started: float) -> None:
        """If training fails before the first save, report the loaded checkpoint as the cause.

        Each part of a wrong state (optimizer, loops, callbacks) fails in its own way at first use.
        An error that passes through a network, a plugin or a user's callback is a bug there.
        """
        explained = InputError | MisconfigurationException
        is_explained = isinstance(error, explained) or explain_failure(error)
        saved = (self.folder / "checkpoints").glob("*.ckpt")
        is_saved = any(path.stat().st_mtime > started for path in saved)
        if self.ckpt_path is None or is_explained or is_saved or is_bug(error):
            return
        raise InputError(
            f"resuming from {self.ckpt_path} failed ({describe_error(error)}). The checkpoint is "
            "damaged, or was saved with other callbacks: give another checkpoint, or start a new "
            "run without --ckpt_path."
        ) from error

    def evaluate(self) -> None:
        """Validate or test; warn if the model was trained on other splits of the corpus."""
        self.datamodule.setup(self.command)
        if is_rank_zero():
            data = self.datamodule.hparams
            print(f"{self.ckpt_path} on {data.corpus}", file=sys.stderr)
            for name in ("val_fraction", "test_fraction"):
                before, now = self.ckpt_data[name], data[name]
                if now != before:
                    notice = f"Notice: {name} is {now}, in training it was {before}"
                    notice += ": the model may have been trained on this text."
                    print(notice, file=sys.stderr)
        getattr(self.trainer, self.command)(self.model, self.datamodule)

    validate = test = evaluate

    def predict(self) -> None:
        """Print texts that continue the prompts."""
        if self.trainer.num_devices * self.trainer.num_nodes > 1:
            raise InputError("predict takes one device: leave --trainer.devices at 1.")
        config = self.config_init
        settings = PredictSettings(**{f.name: config[f.name] for f in fields(PredictSettings)})
        writer, tokenizer = TextWriter(), self.model.tokenizer
        prompts = make_batches(tokenizer, settings, config.seed_everything, writer)
        self.trainer.predict(self.model, Batches(prompts))
        writer.end()


def as_list(value: Any) -> list[Any]:
    """Return the objects that a flag names; its value is an object, a list, null, true or false."""
    return value if isinstance(value, list) else [value] if value and value is not True else []


def run(command: str, flags: Any, kind: type[CharCLI] = CharCLI) -> CharCLI:
    """Run a command. Return the CLI with its `trainer`, `model`, `datamodule` and `folder`.

    Args:
        flags: A list as on the command line, or their values in a dict or a Namespace.

    Raises:
        InputError: A user's mistake, or too little memory. Other exceptions are bugs.
    """
    try:
        with restore_process_state(), exit_with_parent(), report_errors_once():
            cli = kind(command, flags)
            with cli.name_flags():
                getattr(cli, cli.command)()
            return cli
    except InputError:
        raise
    except Exception as error:
        if is_users_mistake(error):
            raise InputError(str(error)) from error
        if advice := explain_failure(error):
            raise InputError(advice) from error
        raise


def main(command: str, flags: Any) -> CharCLI:
    """Run a command as `run` does. A user's mistake ends in SystemExit, after one line of error."""
    with exit_on_input_error(PROGRAM):
        return run(command, flags)
