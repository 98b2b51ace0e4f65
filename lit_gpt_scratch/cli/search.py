"""`compare CONFIG --search N`: looks for good values of flags with Optuna, without an account.

The search minimises the loss on a slice held out of the training text. So it never sees the
validation split.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli.compare import (
    FIRST_SEED,
    environments,
    make_label,
    plan,
    short,
    split_values,
)
from lit_gpt_scratch.cli.jobs import Job, run_jobs
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.shell import shell_name

# Eight tenths of the text for training, one held out; the last one is the validation split.
HELD_OUT = ("--data.val_fraction=0.1", "--data.test_fraction=0.1")
STARTUP_TRIALS = 5  # that are not stopped early
SHOWN = 10  # trials in the table


class Trial(Job):
    """A run of a search. It is stopped early if its loss is worse than the median at that step."""

    def __init__(self, study: Any, trial: Any, *job: Any) -> None:
        super().__init__(*job)
        self.study, self.trial = study, trial
        self.reported: set[int] = set()  # steps
        self.is_pruned = False

    def has_ended(self) -> bool:
        """Report new losses to the study, and the last one when the process has ended."""
        if self.is_pruned:
            return self.process is None or self.process.poll() is not None
        if super().has_ended():
            self.study.tell(self.trial, self.outcome().last)
            return True
        for step, loss in self.losses().items():
            if step not in self.reported:
                self.trial.report(loss, step)
                self.reported.add(step)
        if self.process and self.trial.should_prune():
            self.is_pruned = True
            self.study.tell(self.trial, state=states().PRUNED)
            self.process.terminate()
        return False

    def cell(self) -> str:
        return "pruned" if self.is_pruned else super().cell()


def states() -> Any:
    """Return Optuna's states of a trial."""
    from optuna.trial import TrialState

    return TrialState


def search(
    config: str,
    flags: Sequence[str],
    varied: Mapping[str, str],
    trials: int,
    folder: Path,
    at_once: int | None = None,
) -> str:
    """Train a config with `trials` settings; return the best ones in Markdown, and what to do next.

    The study is kept in FOLDER: the same command continues it, and a larger number extends it.

    Args:
        varied: For each flag, a range LOW..HIGH or values A,B.

    Raises:
        InputError: Optuna is not installed, a flag is wrong, or a run has failed.
    """
    study = open_study(config, flags, varied, folder)
    counted = (states().COMPLETE, states().PRUNED, states().RUNNING)

    def next_trial() -> Job | None:
        while len(study.get_trials(states=counted)) < trials:
            trial = study.ask()
            values = {flag: suggest(trial, flag, text) for flag, text in varied.items()}
            label = make_label(short(flag, str(value)) for flag, value in values.items())
            own = ["--config", config, *flags, *HELD_OUT, *as_flags(values)]
            job = Trial(study, trial, label, FIRST_SEED, own, plan(own), folder)
            if not job.is_finished:
                return job
            study.tell(trial, job.outcome().last)  # trained before
        return None

    run_jobs([], environments(trials, at_once), next_trial)
    found = sorted(study.get_trials(states=(states().COMPLETE,)), key=lambda trial: trial.value)
    values = [{flag: rounded(trial.params[flag]) for flag in varied} for trial in found]
    rows = [["held-out loss", *varied]]
    for trial, drawn in list(zip(found, values, strict=True))[:SHOWN]:
        rows.append([f"{trial.value:.4f}", *map(str, drawn.values())])
    pruned = len(study.get_trials(states=(states().PRUNED,)))
    best = shlex.join(["--config", config, *flags, *as_flags(values[0])])
    return (
        f"{markdown_table(rows)}\n\n{len(found)} finished trials, {pruned} stopped early. Loss in "
        "nats per character on a slice held out of the training text; the validation split was not "
        f"used. To train with the best values:\n  {shell_name()} fit {best}"
    )


def open_study(config: str, flags: Sequence[str], varied: Mapping[str, str], folder: Path) -> Any:
    """Return the study of these arguments, with its earlier trials. Stopped ones wait again."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise InputError("--search needs Optuna: pip install optuna.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=json.dumps([config, *flags, varied]),
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "search.log"))),
        sampler=optuna.samplers.TPESampler(seed=FIRST_SEED),
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(states().RUNNING,)):
        study.tell(trial.number, state=states().FAIL)
        study.enqueue_trial(trial.params)
    return study


def suggest(trial: Any, flag: str, text: str) -> Any:
    """Return a value from a range LOW..HIGH (on a logarithmic scale if LOW > 0), or from A,B."""
    low, dots, high = text.partition("..")
    if not dots:
        return trial.suggest_categorical(flag, split_values(text))
    try:
        if low.isdecimal() and high.isdecimal():
            return trial.suggest_int(flag, int(low), int(high), log=int(low) > 0)
        return rounded(trial.suggest_float(flag, float(low), float(high), log=float(low) > 0))
    except ValueError as error:
        raise InputError(
            f"--vary {flag}={text}: give a range as in 0.001..0.1 ({error})."
        ) from error


def rounded(value: Any) -> Any:
    """Return a number with three significant digits, which are enough, and readable."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the flags of `fit` that set these values."""
    return [f"--{flag}={value}" for flag, value in values.items()]
