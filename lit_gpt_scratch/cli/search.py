"""`compare CONFIG --search N`: looks for good values of flags with Optuna, without an account.

The search minimises the loss on a slice held out of the training text. So it never sees the
validation split.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli.compare import FIRST_SEED, environments, make_label, short, split_values
from lit_gpt_scratch.cli.jobs import Job, run_jobs
from lit_gpt_scratch.cli.recipes import Recipe, plan
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.comparison import markdown_table
from lit_gpt_scratch.runs.folder import validation_losses
from lit_gpt_scratch.runs.reading import parse_number
from lit_gpt_scratch.shell import quote, shell_name

STARTUP_TRIALS = 5  # that are not stopped early; if so many fail first, the search ends
SHOWN = 10  # trials in the table


class Trial(Job):
    """A run of a search. It is stopped early if its loss is worse than the median at that step."""

    def __init__(self, study: Any, trial: Any, *job: Any) -> None:
        super().__init__(*job)
        self.study, self.trials = study, [trial]  # several have drawn the same values
        self.reported: set[int] = set()  # steps
        self.is_pruned = False

    @property
    def is_over(self) -> bool:
        return self.is_pruned or super().is_over

    def tell(self) -> None:
        """Tell the study how the trials have ended."""
        for trial in self.trials:
            if self.failure:
                fail(self.study, trial, self.failure)
            elif self.is_pruned:
                self.study.tell(trial, state=states().PRUNED)
            else:
                self.study.tell(trial, self.outcome.last)

    def has_ended(self) -> bool:
        """Return whether the run has ended. Report its new losses and its end to the study."""
        if self.is_pruned:
            return self.process is None or self.process.poll() is not None
        if super().has_ended():
            self.tell()
            return True
        losses = validation_losses(self.folder) if self.folder else {}
        for step in sorted(losses.keys() - self.reported):
            self.trials[0].report(losses[step], step)
            self.reported.add(step)
        if self.process and self.trials[0].should_prune():
            self.is_pruned = True
            self.tell()
            self.process.terminate()
        return False

    def cell(self) -> str:
        return "pruned" if self.is_pruned else super().cell()


def states() -> Any:
    """Return Optuna's states of a trial."""
    from optuna.trial import TrialState

    return TrialState


def fail(study: Any, trial: Any, reason: str) -> None:
    """End a trial without a loss. For the sampler it has the worst one."""
    trial.set_user_attr("failure", reason)
    study.tell(trial, math.inf)


def search(
    config: str,
    flags: Sequence[str],
    varied: Mapping[str, str],
    trials: int,
    folder: Path,
    at_once: int | None = None,
) -> str:
    """Train a config with up to `trials` values of flags; return the best ones, as Markdown.

    The study is kept in FOLDER: the same command continues it, and a larger number extends it. A
    trial whose values `fit` refuses, or that diverges, is counted and left out.

    Args:
        varied: For each flag, a range LOW..HIGH or values A,B.

    Raises:
        InputError: Optuna is not installed, a flag is wrong, or the first trials have all failed.
    """
    base = plan(["--config", config, *flags])
    shared = ["--config", config, *flags, *held_out(base)]
    study = open_study([config, *flags], varied, folder, int(base.settings["trainer.max_steps"]))
    jobs: list[Job] = []

    def next_trial() -> Job | None:
        counted = (states().COMPLETE, states().PRUNED, states().RUNNING)
        while len(study.get_trials(states=counted)) < trials:
            if len(failed(study)) >= STARTUP_TRIALS and not done(study):
                return None
            trial = study.ask()
            values = {flag: suggest(trial, flag, text) for flag, text in varied.items()}
            label = make_label(short(flag, str(value)) for flag, value in values.items())
            own = [*shared, *as_flags(values)]
            twins = [job for job in jobs if job.label == label and not job.is_over]
            if twins and isinstance(twins[0], Trial):
                twins[0].trials.append(trial)
                continue
            try:
                job = Trial(study, trial, label, FIRST_SEED, own, plan(own), folder)
            except InputError as error:
                print(f"{label}: {error}", file=sys.stderr)
                fail(study, trial, str(error))
                continue
            if not job.is_finished:
                return job
            job.tell()  # trained before
        return None

    run_jobs(jobs, environments(trials, at_once, base.device == "cuda"), next_trial, trials)
    found = sorted(done(study), key=lambda trial: trial.value)
    if not found:
        raise InputError(f"all trials have failed; the last one: {failed(study)[-1]}")
    values = [{flag: rounded(trial.params[flag]) for flag in varied} for trial in found]
    rows = [["held-out loss", *varied]]
    for trial, drawn in list(zip(found, values, strict=True))[:SHOWN]:
        rows.append([f"{trial.value:.4f}", *map(str, drawn.values())])
    pruned = len(study.get_trials(states=(states().PRUNED,)))
    best = quote("--config", config, *flags, *as_flags(values[0]))
    return (
        f"{markdown_table(rows)}\n\n{len(found)} finished trials, {pruned} stopped early, "
        f"{len(failed(study))} failed. Loss in nats per character on a slice held out of the "
        "training text; the validation split was not used. To train with the best values:\n"
        f"  {shell_name()} fit {best}"
    )


def held_out(base: Recipe) -> list[str]:
    """Return flags that validate on the last tenth of the training text.

    The text is cut into training, validation and test. The config's validation and test parts
    become the test part, which no trial reads.
    """
    parts = (float(base.settings[f"data.{part}_fraction"]) for part in ("val", "test"))
    return ["--data.val_fraction=0.1", f"--data.test_fraction={round(sum(parts), 6)}"]


def done(study: Any) -> list[Any]:
    """Return the trials with a loss."""
    trials = study.get_trials(states=(states().COMPLETE,))
    return [trial for trial in trials if "failure" not in trial.user_attrs]


def failed(study: Any) -> list[str]:
    """Return why trials have failed."""
    trials = study.get_trials(states=(states().COMPLETE,))
    return [trial.user_attrs["failure"] for trial in trials if "failure" in trial.user_attrs]


def open_study(
    command: Sequence[str], varied: Mapping[str, str], folder: Path, max_steps: int
) -> Any:
    """Return the study of these arguments, with its earlier trials. Stopped ones wait again.

    No trial is stopped early in the first tenth of its steps.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise InputError("--search needs Optuna: pip install optuna.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=json.dumps([*command, varied]),
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "search.log"))),
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=max(0, max_steps // 10)),
        load_if_exists=True,
    )
    # Each start draws other values than the starts before.
    study.sampler = optuna.samplers.TPESampler(seed=FIRST_SEED + len(study.trials))
    for trial in study.get_trials(states=(states().RUNNING,)):
        study.tell(trial.number, state=states().FAIL)
        study.enqueue_trial(trial.params)
    return study


def suggest(trial: Any, flag: str, text: str) -> Any:
    """Return a value from a range LOW..HIGH (on a logarithmic scale if LOW > 0), or from A,B."""
    low, dots, high = text.partition("..")
    if not dots:
        return trial.suggest_categorical(flag, split_values(text))
    least, most = parse_number(low), parse_number(high)
    if least is None or most is None or least >= most:
        raise InputError(
            f"--vary {flag}={text}: give two numbers, the lower one first, as in 0.001..0.1."
        )
    if low.isdecimal() and high.isdecimal():
        return trial.suggest_int(flag, int(low), int(high), log=int(low) > 0)
    return rounded(trial.suggest_float(flag, least, most, log=least > 0))


def rounded(value: Any) -> Any:
    """Return a number with three significant digits, which are enough, and readable."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the flags of `fit` that set these values."""
    return [f"--{flag}={value}" for flag, value in values.items()]
