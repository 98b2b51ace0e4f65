"""`fit`, `compare` and `load` for notebooks and scripts: exceptions instead of exit codes.

    import lit_gpt_scratch as lgs
    run = lgs.fit("multi_head", max_steps=500, lr=0.02)
    model = lgs.load(run)

Names of changes are flags, such as `**{"model.optimizer.lr": 0.02}`, or their last parts. `seed` is
`seed_everything`.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt_scratch.cli import commands
from lit_gpt_scratch.cli import compare as compare_command
from lit_gpt_scratch.cli.compare import make_variants
from lit_gpt_scratch.cli.display import LiveCurve, cell_display
from lit_gpt_scratch.cli.messages import MEANT
from lit_gpt_scratch.cli.recipes import flags_of
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection import loading
from lit_gpt_scratch.runs.comparison import Comparison
from lit_gpt_scratch.runs.folder import last_checkpoint, read_mapping, validation_losses
from lit_gpt_scratch.runs.listing import age, find_checkpoint, read_info
from lit_gpt_scratch.runs.reading import runs_below
from lit_gpt_scratch.training.module import LitCharLM


class FitRun:
    """A run that `fit` has trained, to its end or until it was interrupted.

    Attributes:
        folder: The run's folder.
        model: The model after the last step, on the CPU and in evaluation mode.
        is_finished: False if it was interrupted; `resume()` continues it.
    """

    def __init__(self, cli: commands.CharCLI) -> None:
        self.folder: Path = cli.folder
        self.model: LitCharLM = cli.model.cpu().eval()

    @property
    def is_finished(self) -> bool:
        return bool(read_mapping(self.folder / "about.yaml").get("finished"))

    @property
    def losses(self) -> dict[int, float]:
        """Validation losses by step, in nats per character."""
        return validation_losses(self.folder)

    def resume(self, **changes: Any) -> "FitRun":
        """Continue the run from its last checkpoint; `max_steps=...` makes a finished one longer.

        Raises:
            InputError: There is no checkpoint yet, or a change is wrong.
        """
        last = last_checkpoint(self.folder)
        if not last.is_file():
            raise InputError(f"{self.folder} has no checkpoint yet: start the run again with fit.")
        config = str(self.folder / "config.yaml")
        return _train(["--config", config, "--ckpt_path", str(last)], config, changes)

    def __repr__(self) -> str:
        step, loss = max(self.losses.items(), default=(0, None))
        known = "not validated" if loss is None else f"val/loss {loss:.4f} at step {step:,}"
        is_saved = last_checkpoint(self.folder).is_file()
        state = "stopped: resume() continues it" if is_saved else "stopped, nothing is saved"
        state = "finished" if self.is_finished else state
        return f"FitRun({self.folder.as_posix()}: {known}, {state})"


class NotebookCLI(commands.CharCLI):
    """`fit` with a live curve. An interrupt saves the run, and ends `fit` without an exception."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)
        if self.command == "fit" and (show := cell_display()):
            self.progress = LiveCurve(show)
        return trainer

    def add_recorders(self) -> None:
        if isinstance(self.progress, LiveCurve):
            self.progress.folder = self.folder
        super().add_recorders()

    def fit(self) -> None:
        try:
            super().fit()
        except SystemExit:  # after an interrupt, when all is saved
            if last_checkpoint(self.folder).is_file():
                print("The run is saved: resume() continues it.")


def fit(config: str | Path = "gpt_cpu", **changes: Any) -> FitRun:
    """Train a config of the program, or a file, with some flags changed.

    The runs are in ./runs, or in ../runs if this folder is `notebooks`.

    Raises:
        InputError: A value is wrong. The message says what is allowed.
    """
    name = _config_name(config)
    root = f"--trainer.default_root_dir={_root()}"
    return _train(["--config", name, root], name, changes)


def compare(
    *configs: str | Path,
    seeds: int = 3,
    vary: Mapping[str, Sequence[Any]] | None = None,
    at_once: int | None = None,
    **changes: Any,
) -> Comparison:
    """Train configs, or one config with other values, for several seeds; return the verdicts.

    Short names are those of the first config's flags.

    Args:
        configs: Names of configs of the program, or files; the default is gpt_cpu.
        seeds: Number of seeds: 1337, 1338 and so on.
        vary: Values to try for each flag, such as {"lr": [0.01, 0.02]}.
        at_once: Number of runs at a time; the default is one for each core or GPU.
        changes: Other values of flags, for all configs.

    Raises:
        InputError: A value is wrong, or a run has failed.
    """
    names = [_config_name(config) for config in configs or ("gpt_cpu",)]
    for name, number in {"seeds": seeds, "at_once": 1 if at_once is None else at_once}.items():
        if not isinstance(number, int):
            raise InputError(f"{name} is {number!r}: it must be a whole number.")
    lists = list(vary.values()) if isinstance(vary, Mapping) else [None] * (vary is not None)
    if wrong := [values for values in lists if not isinstance(values, list | tuple) or not values]:
        raise InputError(f'vary has {wrong[0]!r}: give values, as in vary={{"lr": [0.01, 0.02]}}.')
    tried, shared = _by_flag(names[0], vary or {}), _by_flag(names[0], changes)
    for flag in (*tried, *shared):
        if f"--{flag}" in compare_command.SET_HERE:
            raise InputError(f"compare sets {flag} itself: leave it out. seeds=3 trains 3 seeds.")
    varied = {flag: ",".join(map(_text, values)) for flag, values in tried.items()}
    flags = _as_flags(shared)
    variants = {k: [*own, *flags] for k, own in make_variants(names, varied).items()}
    folder = _root() / compare_command.FOLDER
    with _on_standard_output():
        return compare_command.compare(variants, seeds, folder, at_once, tuple(varied))


def pick(checkpoint: str | None = None) -> Any:
    """Show a menu of all runs. Its `value` is the path of the chosen one, at first the newest.

    Args:
        checkpoint: A path to be chosen at first.

    Raises:
        InputError: There is no run, or ipywidgets is not installed.
    """
    try:
        from ipywidgets import Dropdown, Layout
    except ModuleNotFoundError as error:
        raise InputError("a menu needs ipywidgets: pip install ipywidgets.") from error
    options = [(checkpoint, checkpoint)] if checkpoint else []
    runs = _root() / "runs"
    infos = [read_info(folder) for folder in runs_below(runs)] if runs.is_dir() else []
    for info in sorted(infos, key=lambda info: info.seconds_ago):
        if info.best is not None:
            text = f"{info.path}: {info.network}, val/loss {info.best:.4f}, {age(info.seconds_ago)}"
            options.append((text, info.path))
    if not options:
        raise InputError("there is no run with a checkpoint yet: train one with fit.")
    return Dropdown(options=options, description="model", layout=Layout(width="50em"))


def load(checkpoint: str | Path | FitRun = "best", plugin: str | None = None) -> LitCharLM:
    """Return the model of a run, a checkpoint or an export, on the CPU and in evaluation mode.

    `best` and `last` are those of the newest run.

    Raises:
        InputError: There is no such checkpoint, or it is damaged.
    """
    if isinstance(checkpoint, FitRun):
        return checkpoint.model
    with _on_standard_output():
        return loading.load(find_checkpoint(str(checkpoint), _root() / "runs"), plugin)


def _root() -> Path:
    """Return the folder that has runs/."""
    return Path("..") if Path.cwd().name == "notebooks" else Path()


def _train(flags: list[str], config: str, changes: Mapping[str, Any]) -> FitRun:
    with _on_standard_output():
        cli = commands.run("fit", [*flags, *_as_flags(_by_flag(config, changes))], NotebookCLI)
    return FitRun(cli)


@contextlib.contextmanager
def _on_standard_output() -> Iterator[None]:
    """Print notices on standard output: a notebook shows standard error in red."""
    with contextlib.redirect_stderr(sys.stdout):
        yield


def _config_name(config: object) -> str:
    """Return a config as on the command line."""
    if not isinstance(config, str | Path):
        raise InputError(f"config is {config!r}: give the name of a config, or a file.")
    return str(config)


def _text(value: Any) -> str:
    """Return a value as on the command line; of a class, its path."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, str | Path):
        return str(value)
    try:
        return json.dumps(value.item() if hasattr(value, "item") else value)  # also NumPy's numbers
    except (TypeError, ValueError) as error:
        raise InputError(f"{value!r} cannot be the value of a flag.") from error


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return values by flag as on the command line."""
    return [f"--{flag}={_text(value)}" for flag, value in values.items()]


def _by_flag(config: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by flag; a name without a dot is the last part of one flag of the config."""
    known = flags_of(config) if any("." not in name for name in values) else []
    flags = {}
    for name, value in values.items():
        last = MEANT["seed"] if name == "seed" else name  # data.seed follows seed_everything
        found = [flag for flag in known if flag.rpartition(".")[2] == last] or [name]
        if len(found) > 1:
            example = f'{{"{found[0]}": ...}}'
            raise InputError(f"{name} may be {' or '.join(found)}: give one, as in {example}.")
        flags[found[0]] = value
    return flags
