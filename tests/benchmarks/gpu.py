"""Measure on one GPU what only a GPU can tell: `make gpu`, or `python tests/benchmarks/gpu.py`.

The parts run one after another in the order of PARTS, the most important first. Each is a process
with a limit of time of its own, inside `--budget`. A part that is out of time is killed; what it
has found until then counts. OUT/results.json has the figures of all parts, also those of earlier
calls; it is written after each part. OUT/gpu.md has the tables.

`--smoke` tries all parts on the CPU, with tiny networks and the built-in text. The package need not
be installed, and W&B and plotly may be missing.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package need not be installed

from common import CONFIGS, ROOT, SEEDS, publish, seconds_to

from lit_gpt_scratch.errors import exit_with_error
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.runs.comparison import markdown_table, mean_and_range
from lit_gpt_scratch.runs.folder import (
    find_unfinished_run,
    last_checkpoint,
    read_mapping,
    read_rows,
    validations,
)

SCRIPT = Path(__file__)  # what the process of a part runs
PROGRAM = [sys.executable, "-m", "lit_gpt_scratch"]
GRACE = 10.0  # seconds before the end of a part's time when its commands are stopped, and save
GOAL = 1.4697  # nanoGPT's published validation loss for a GPU
STOPPED = 128 + signal.SIGTERM  # exit code of `fit` after it has saved
RUNGS = ("bigram", "mean", "single_head", "multi_head", "transformer", "gpt_cpu_classic")
RUNGS += ("gpt_cpu_short",)

# For `--smoke`: flags of `fit`, for all configs and for some.
SIZES = ("layers=1", "width=16", "attention.heads=2")
SMOKE = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=16", "--data.batch_size=4",
    "--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2",
    "--model.compile=false",
]  # fmt: skip
SMOKE_SIZES = {
    "gpt": [f"--model.net.{size}" for size in SIZES],
    "gpt_cpu": [f"--model.net.{size}" for size in SIZES],
    "gpt_gpu": ["--model.net.size=2", *(f"--model.net.net.{size}" for size in SIZES)],
}
SLOW = 6  # a part may take this many times its limit


class Work:
    """What a part is given: its time, its sizes, and where its figures go."""

    def __init__(self, name: str, seconds: float, options: argparse.Namespace) -> None:
        self.name, self.out = name, options.out
        self.smoke, self.nanogpt = options.smoke, options.nanogpt
        self._end = time.monotonic() + seconds - GRACE

    @property
    def left(self) -> float:
        """Return the seconds until commands are stopped."""
        return max(0.0, self._end - time.monotonic())

    def say(self, figure: str, value: Any) -> None:
        """Write a figure to the disk at once."""
        with (self.out / f"{self.name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps([figure, value])}\n")

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / name / "version_0"

    def fit(self, config: str, name: str, *flags: str) -> list[str]:
        """Remove an earlier run of this name; return the command that trains a config."""
        shutil.rmtree(self.folder(name).parent, ignore_errors=True)
        small = [*SMOKE, *SMOKE_SIZES.get(config, [])] if self.smoke else []
        return [
            *PROGRAM, "fit", f"--config={CONFIGS / config}.yaml", f"--name={name}",
            f"--trainer.default_root_dir={self.out}", "--wandb.mode=disabled", *small, *flags,
        ]  # fmt: skip

    def run(
        self, commands: Mapping[str, Sequence[str]], expected: int = 0, **how: Any
    ) -> list[str]:
        """Run commands side by side, and return what each prints. Stop them if the time is over.

        Args:
            commands: By a name, that of a log.
            expected: An exit code that is no failure, beside 0.
            how: Arguments of subprocess.Popen.

        Raises:
            RuntimeError: A command has failed.
        """
        logs = [self.out / "logs" / f"{name}.log" for name in commands]
        running = []
        for path, command in zip(logs, commands.values(), strict=True):
            with path.open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, **how))
        codes = []
        for process in running:
            try:
                codes.append(process.wait(self.left))
            except subprocess.TimeoutExpired:
                process.terminate()  # `fit` ends its step, and saves
                codes.append(expected)
        for process in running:
            process.wait()
        printed = [path.read_text(encoding="utf-8", errors="replace") for path in logs]
        for name, code, text in zip(commands, codes, printed, strict=True):
            if code not in (0, expected):
                raise RuntimeError(f"{name} ended with {code}: {last_line(text)}")
        return printed

    def open_nanogpt(self) -> Any:
        """Return the checkout of nanoGPT, with its data prepared."""
        from nanogpt import NanoGPT

        from lit_gpt_scratch.data.corpus import open_corpus

        corpus = open_corpus("sample" if self.smoke else "tiny-shakespeare", sample_size=20_000)
        return NanoGPT(self.nanogpt, corpus.path)


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def send(name: str, step: int) -> list[str]:
    """Return flags of `fit` for a run that sends itself a signal in a step, counted from 0."""
    callback = "extra_callbacks.SendSignal"
    arguments = [f"--trainer.callbacks.name={name}", f"--trainer.callbacks.step={step}"]
    return [f"--trainer.callbacks+={callback}", *arguments]


# Parts that train by the command `fit`


def figures_of(folder: Path) -> dict[str, Any]:
    """Return what a run's files tell: losses in nats per character, times, speed and memory.

    Raises:
        RuntimeError: It has no validation.
    """
    rows, config = read_rows(folder / "metrics.csv")[1], read_mapping(folder / "config.yaml")
    curve = [
        (int(row["step"]), float(row["train_seconds"]), float(row["val/loss"]))
        for row in validations(folder)
    ]
    if not curve:
        raise RuntimeError(f"{folder} has no validation: its time was too short")
    steps = max(int(row["step"]) for row in rows if row.get("step", "").isdecimal())
    first = seconds_to(GOAL, [(spent, loss) for _, spent, loss in curve])
    figures: dict[str, Any] = {
        "steps": f"{steps:,} of {config['trainer']['max_steps']:,}",
        "seconds of training": curve[-1][1],
        f"seconds of training to {GOAL}": "not reached" if math.isnan(first) else first,
        "validation, last": curve[-1][2],
        "validation, best": min(loss for *_, loss in curve),
        "curve": curve,
    }
    if (probe := folder / "probe.json").exists():
        figures |= json.loads(probe.read_text(encoding="utf-8"))
    speeds, shares = (
        [float(row[name]) for row in rows if row.get(name)] for name in ("chars_per_sec", "mfu")
    )
    if speeds:
        speed = median(speeds[1:] or speeds)  # in the first interval, the network is compiled
        seconds = config["data"]["batch_size"] * config["data"]["context"] / speed
        figures |= {"ms a step": 1000 * seconds, "characters/s": speed}
        if "TFLOP a step" in figures:
            figures["TFLOP/s"] = figures["TFLOP a step"] / seconds
    if shares:
        figures["utilisation (mfu)"] = median(shares[1:] or shares)
    return figures


def train(work: Work, config: str, *flags: str, seed: int = SEEDS[0], expected: int = 0) -> Path:
    """Train a config to its end, or until the time is over, and say what its run tells.

    The first seed starts with an empty cache of compiled code. Return the run's folder.
    """
    is_first = seed == SEEDS[0]
    name, prefix = (config, "") if is_first else (f"{config}-{seed}", f"seed {seed}: ")
    if is_first:
        shutil.rmtree(work.out / "compiled" / config, ignore_errors=True)
    probe = "--trainer.callbacks+=gpu_inside.Probe"
    command = work.fit(config, name, f"--seed_everything={seed}", probe, *flags)
    return say_run(work, config, name, command, prefix, expected)


def say_run(
    work: Work, config: str, name: str, command: Sequence[str], prefix: str = "", expected: int = 0
) -> Path:
    """Run a command that trains, and say what its run tells. Return the run's folder."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(work.out / "compiled" / config)}
    start = time.monotonic()
    work.run({name: command}, expected, env=os.environ | cache)
    spent = {"seconds of the command": time.monotonic() - start}
    for figure, value in (spent | figures_of(work.folder(name))).items():
        work.say(f"{prefix}{figure}", value)
    return work.folder(name)


def gpt(work: Work) -> None:
    """The reference's recipe (20 minutes of an A100: 1.6357) to its end. Goal: 120 s training."""
    train(work, "gpt", *(send("SIGTERM", 3) if work.smoke else []), expected=STOPPED)


def gpt_rest(work: Work) -> None:
    """The run of `gpt` goes on from where its time was over, to its end if there is time."""
    folder = find_unfinished_run(work.folder("gpt").parent)
    if folder is None:
        work.say("nothing to do", "there is no unfinished run of gpt")
        return
    files = [f"--config={folder / 'config.yaml'}", f"--ckpt_path={last_checkpoint(folder)}"]
    say_run(work, "gpt", "gpt", [*PROGRAM, "fit", *files])


def gpt_gpu(work: Work) -> None:
    """`gpt_gpu` to its end. Goals: 1.4697 in 30 s of training, 1.36 at the end."""
    checkpoint = train(work, "gpt_gpu") / "checkpoints" / "best.ckpt"
    exact = [f"--ckpt_path={checkpoint}", "--trainer.precision=32-true"]
    [printed] = work.run({"validate": [*PROGRAM, "validate", *exact]})
    if found := re.search(r"val/loss\D+(\d+\.\d+)", printed):  # else the time was over
        work.say("validation, best, in fp32", float(found[1]))


def gpt_cpu(work: Work) -> None:
    """`gpt_cpu`, the default config, to its end."""
    train(work, "gpt_cpu")


def seeds(work: Work) -> None:
    """`gpt_gpu` with two more seeds, which find their compiled code in the cache."""
    runs = [work.folder("gpt_gpu")]
    for seed in SEEDS[1:2] if work.smoke else SEEDS[1:]:
        if work.left > PARTS["seeds"].least:
            runs += [train(work, "gpt_gpu", seed=seed)]
    ended = [run for run in runs if read_mapping(run / "about.yaml").get("finished")]
    losses = [figures_of(run)["validation, last"] for run in ended]
    work.say(f"validation, last: mean and range of {len(ended)} seeds", mean_and_range(losses))


def rungs(work: Work) -> None:
    """Each smaller rung once, side by side: their losses count, their times mean little."""
    names = RUNGS[:1] if work.smoke else RUNGS
    work.run({name: work.fit(name, name) for name in names})
    for name in names:
        figures = figures_of(work.folder(name))
        for figure in ("steps", "validation, last", "ms a step"):
            work.say(f"{name}: {figure}", figures[figure])


def resume(work: Work) -> None:
    """A run that is killed and resumed, and one that is not, in deterministic mode."""
    from compare_runs import same, state, tables

    steps, killed_at = (6, 4) if work.smoke else (200, 130)
    flags = ["--trainer.deterministic=true", f"--trainer.max_steps={steps}"]
    configs = {"gpt": flags}
    if not work.smoke:
        flags += ["--trainer.val_check_interval=50", "--trainer.log_every_n_steps=10"]
        smaller = ["--model.net.layers=2", "--model.net.width=128", "--data.batch_size=32"]
        configs = {"gpt": [*flags, *smaller], "gpt_cpu": flags}
    whole = {f"whole-{c}": work.fit(c, f"whole-{c}", *own) for c, own in configs.items()}
    killed = {f"killed-{c}": work.fit(c, f"killed-{c}", *own) for c, own in configs.items()}
    deadly = {name: [*command, *send("SIGKILL", killed_at)] for name, command in killed.items()}
    work.run(whole | deadly, -signal.SIGKILL)
    last = {name: last_checkpoint(work.folder(name)) for name in killed}
    work.run({name: [*killed[name], f"--ckpt_path={path}"] for name, path in last.items()})
    for config in configs:
        folders = work.folder(f"whole-{config}"), work.folder(f"killed-{config}")
        one, other = map(state, folders)
        weights = one["state_dict"], other["state_dict"]
        apart = max(float((w - weights[1][name]).abs().max()) for name, w in weights[0].items())
        work.say(f"{config}: equal to the last bit", same(one, other))
        work.say(f"{config}: equal rows of all tables", tables(folders[0]) == tables(folders[1]))
        work.say(f"{config}: largest difference of a weight", apart)


# Parts that look inside, in a process of their own, which imports PyTorch and Lightning


def environment(work: Work) -> None:
    """The machine: versions, bandwidth of the memory, speed of a matrix product."""
    import gpu_inside

    gpu_inside.environment(work)


def numerics(work: Work) -> None:
    """All networks: GPU against CPU, bf16 against fp32, compiled gradients against eager ones."""
    import gpu_inside

    gpu_inside.numerics(work)


def generation(work: Work) -> None:
    """A full context from one character, for 1 and for 64 texts, in fp32; the command `predict`."""
    import gpu_inside

    gpu_inside.generation(work)
    run = work.folder("gpt_cpu")
    if (run / "checkpoints" / "best.ckpt").exists():
        ask = [f"--ckpt_path={run}", "--num_samples=64", "--max_new_tokens=256"]
        start = time.monotonic()
        work.run({"predict": [*PROGRAM, "predict", *ask]})
        if work.left:
            work.say("predict: 64 texts of 256 characters, s", time.monotonic() - start)


def nanogpt(work: Work) -> None:
    """nanoGPT's train.py with its settings for a GPU, for as long as there is time."""
    if not work.nanogpt:
        work.say("nothing to do", "no checkout is named by --nanogpt")
        return
    from nanogpt import GPU_RECIPE, SMALLEST, estimated_losses, step_seconds

    command = [sys.executable, "-u", "train.py", *GPU_RECIPE, *(SMALLEST if work.smoke else [])]
    [printed] = work.run({"nanogpt-train": command}, cwd=work.open_nanogpt().folder)
    spent, losses = step_seconds(printed), estimated_losses(printed)
    steady = [spent[step] for step in spent if step >= 2 and step not in losses]
    if not steady:
        raise RuntimeError(f"nanoGPT has trained too few steps: {last_line(printed)}")
    work.say("steps", len(spent))
    work.say("ms a step", 1000 * median(steady))
    work.say("validation, best of its estimates", min(losses.values()))
    first = seconds_to(GOAL, [(step * median(steady), loss) for step, loss in losses.items()])
    work.say(f"seconds of training to {GOAL}", "not reached" if math.isnan(first) else first)


# The parts, and their processes


class Part(NamedTuple):
    """A part: what it does, and its seconds."""

    measure: Callable[[Work], None]
    limit: float  # when it is killed
    least: float  # with less left of the budget, it is not started


PARTS = {
    part.measure.__name__: part
    for part in (
        Part(environment, limit=40, least=5),
        Part(gpt, limit=220, least=60),
        Part(gpt_gpu, limit=110, least=45),
        Part(gpt_cpu, limit=50, least=25),
        Part(numerics, limit=110, least=25),
        Part(resume, limit=90, least=35),
        Part(rungs, limit=70, least=25),
        Part(generation, limit=50, least=15),
        Part(nanogpt, limit=90, least=45),
        Part(seeds, limit=150, least=40),
        Part(gpt_rest, limit=600, least=35),
    )
}


def run_part(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process; kill all its processes when its time is over. Return its result."""
    log, figures = options.out / "logs" / f"{name}.log", options.out / f"{name}.jsonl"
    figures.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), f"--part={name}", f"--seconds={seconds}"]
    command += [f"--out={options.out}", *["--smoke"] * options.smoke]
    command += [f"--nanogpt={options.nanogpt}"] if options.nanogpt else []
    folders = [str(folder) for folder in (ROOT, ROOT / "tests", Path(__file__).parent)]
    folders += filter(None, [os.environ.get("PYTHONPATH")])
    variables = {"PYTHONPATH": os.pathsep.join(folders)}
    variables |= {"TORCHINDUCTOR_CACHE_DIR": str(options.out / "compiled")}
    variables |= {"CUDA_VISIBLE_DEVICES": ""} if options.smoke else {}
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | variables, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            text = log.read_text(encoding="utf-8", errors="replace")
            ended = f"failed: {last_line(text)}" if code else "ended"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    spent = round(time.monotonic() - start, 1)
    return {"ended": ended, "seconds": spent, "figures": read_figures(figures)}


def read_figures(path: Path) -> dict[str, Any]:
    """Return what a part has said; a kill may have cut off its last line."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            figure, value = json.loads(line)
            found[figure] = value
    return found


def run_parts(
    parts: Mapping[str, Part], options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run parts in turn, as long as the budget lasts. Yield the name and the result of each."""
    end = time.monotonic() + options.budget
    for name, part in parts.items():
        left = max(0.0, end - time.monotonic())
        if left < part.least:
            yield name, {"ended": f"left out: {left:.0f} s were left", "figures": {}}
        else:
            limit = part.limit * (SLOW if options.smoke else 1)
            yield name, run_part(name, min(limit, left), options)


def tables(results: Mapping[str, Any]) -> str:
    """Return the figures of all parts in Markdown, without curves."""
    texts = []
    for name, result in results.items():
        described = " ".join((PARTS[name].measure.__doc__ or "").split())
        seconds = f" after {result['seconds']:.0f} s" if "seconds" in result else ""
        texts.append(f"**{name}**: {described} ({result['ended']}{seconds})")
        rows = [[k, show(v)] for k, v in result["figures"].items() if not isinstance(v, list)]
        if rows:
            texts.append(markdown_table([[name, ""], *rows]))
    return "\n\n".join(texts)


def show(value: Any) -> str:
    """Format a figure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def main(args: Sequence[str] | None = None) -> int:
    """Run the parts from the command line. Return 0 if all that were started have ended well."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=470, help="seconds in all (default: 470)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="all but these parts")
    parser.add_argument("--smoke", action="store_true", help="try all parts on the CPU, tiny")
    out = "folder of results and runs (default: runs/gpu, for a smoke run runs/gpu-smoke)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout")
    parser.add_argument("--readme", action="store_true", help="write tests/benchmarks/README.md")
    for internal in ("--part", "--seconds"):  # of the process of a part
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    folder = ROOT / "runs" / ("gpu-smoke" if options.smoke else "gpu")
    options.out = (options.out or folder).resolve()
    options.nanogpt = options.nanogpt and options.nanogpt.resolve()
    if options.part:
        PARTS[options.part].measure(Work(options.part, float(options.seconds), options))
        return 0
    if not options.smoke:
        import torch

        if not torch.cuda.is_available():
            exit_with_error(parser.prog, "no CUDA GPU is here. --smoke tries all parts on the CPU.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # and end the part that runs
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    chosen = [name for name in PARTS if name in options.only and name not in options.skip]
    bad = False
    for name, result in run_parts({name: PARTS[name] for name in chosen}, options):
        print(f"{name}: {result['ended']}, {result.get('seconds', 0)} s", file=sys.stderr)
        bad |= not result["ended"].startswith(("ended", "left out"))
        if "seconds" in result or name not in results:  # keep earlier figures of a part left out
            results[name] = result
        results = {name: results[name] for name in PARTS if name in results}
        with atomic_write(path) as file:
            file.write(json.dumps(results, indent=1).encode())
    publish("gpu", tables(results), options.readme and not options.smoke, options.out)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
