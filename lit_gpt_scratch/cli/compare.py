"""`lit-gpt-scratch compare`: trains several configs with several seeds, and gives a verdict.

A run with the same settings, seed and code is not repeated, and a stopped one is resumed.
"""

import argparse
import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise, product, takewhile
from pathlib import Path

import torch

from lit_gpt_scratch.cli.jobs import Job, run_jobs
from lit_gpt_scratch.cli.parsing import find_config
from lit_gpt_scratch.cli.recipes import plan
from lit_gpt_scratch.errors import (
    InputError,
    exit_on_input_error,
    require_positive,
    write_errors_as_input_errors,
)
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.runs.comparison import (
    Comparison,
    Settings,
    describe_unequal,
    differing_settings,
    unequal_settings,
)
from lit_gpt_scratch.runs.groups import without_seeds
from lit_gpt_scratch.shell import PROGRAM, in_shell, shell_name

FIRST_SEED = 1337
FOLDER = Path("comparisons")
# Flags of `fit` that a comparison sets itself.
SET_HERE = (
    "--config", "-c", "--ckpt_path", "--name", "--seed_everything", "--trainer.default_root_dir",
)  # fmt: skip


def compare(
    variants: Mapping[str, Sequence[str]],
    seeds: int = 3,
    folder: Path = FOLDER,
    at_once: int | None = None,
    varied: Sequence[str] = (),
) -> Comparison:
    """Train all variants with all seeds; return their losses and the verdicts.

    A variant of which a run fails is left out, with a warning.

    Args:
        variants: The flags of `fit` for each label. All others are compared with the first.
        seeds: Number of seeds: 1337, 1338 and so on.
        folder: The runs are in FOLDER/runs/LABEL.
        at_once: Number of runs at a time; the default is one for each core or GPU.
        varied: Flags that the comparison is about; by default, the first group that differs.

    Raises:
        InputError: There are fewer than two variants, a flag is wrong, or runs of the first variant
            or of all others have failed.
    """
    require_positive(seeds=seeds, at_once=1 if at_once is None else at_once)
    if len(variants) < 2:
        raise InputError("there is one variant: give two configs, or two values to vary.")
    recipes = {label: plan(flags) for label, flags in variants.items()}
    settings = {label: without_seeds(recipe.settings) for label, recipe in recipes.items()}
    for (a, first), (b, second) in combinations(settings.items(), 2):
        if first == second:
            raise InputError(f"{a} and {b} have the same settings: leave one out.")
    warnings = find_unequal(settings, varied)
    if any(own["trainer.limit_val_batches"] not in ("null", "1.0") for own in settings.values()):
        warnings.append("--trainer.limit_val_batches leaves out a part of the validation split.")
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    with write_errors_as_input_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(label, seed, flags, recipes[label], folder)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for label, flags in variants.items()
    ]
    is_on_gpu = any(recipe.device == "cuda" for recipe in recipes.values())
    places = environments(len(jobs), at_once, is_on_gpu)
    done = sum(job.is_finished for job in jobs)
    before = f", {done} are finished already" if done else ""
    print(
        f"{len(jobs)} runs in {folder / 'runs'}, {len(places)} at a time{before}", file=sys.stderr
    )
    run_jobs(jobs, places)
    failures = {job.label: f"{job.label}: {job.failure}" for job in reversed(jobs) if job.failure}
    left = [label for label in variants if label not in failures]
    if failures and (len(left) < 2 or left[0] != next(iter(variants))):
        raise InputError(f"nothing can be compared. {' '.join(failures.values())}")
    outcomes = {label: [job.outcome for job in jobs if job.label == label] for label in left}
    return Comparison(
        outcomes, differing_settings(settings), warnings, machine(), list(failures.values())
    )


def find_unequal(settings: Mapping[str, Settings], varied: Sequence[str]) -> list[str]:
    """Return a warning for each variant that differs from the first in more than one thing."""
    (first, base), *others = settings.items()
    pairs = {label: differing_settings({first: base, label: own}) for label, own in others}
    unequal = {label: unequal_settings(different, varied) for label, different in pairs.items()}
    return [f"{label} {describe_unequal(found)}" for label, found in unequal.items() if found]


def environments(runs: int, at_once: int | None, is_on_gpu: bool) -> list[dict[str, str]]:
    """Return the environment variables of the processes that run at the same time.

    On a CPU they share the cores. On GPUs, each has one of those that the user allows.
    """
    gpus, cores = torch.cuda.device_count() if is_on_gpu else 0, os.cpu_count() or 1
    count = min(at_once or gpus or cores, runs)
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else [str(number) for number in range(gpus)]
    devices = [{"CUDA_VISIBLE_DEVICES": names[k % gpus]} if gpus > 1 else {} for k in range(count)]
    return [threads | os.environ | device for device in devices]


def machine() -> str:
    """Return the processor, the GPU and the PyTorch version of this machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{os.cpu_count()} cores of {name}, {device}, PyTorch {torch.__version__}"


def make_variants(configs: Sequence[str], varied: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the flags of each variant by its label: configs, times all values of `--vary`."""
    grid = [[(flag, value) for value in split_values(text)] for flag, text in varied.items()]
    chosen = [(config, changes) for config in configs for changes in product(*grid)]
    # The whole values are the names where their ends are equal, as in a.Mine and b.Mine.
    for is_short in (True, False):
        variants = {}
        for config, changes in chosen:
            names = [short(flag, v) if is_short else f"{flag}={v}" for flag, v in changes]
            path = find_config(config)
            stem = [path.stem if is_short else str(path)] if len(configs) > 1 or not names else []
            flags = ["--config", config, *(f"--{flag}={value}" for flag, value in changes)]
            variants[make_label([*stem, *names])] = flags
        if len(variants) == len(chosen):
            return variants
    raise InputError("two variants are equal: give each config and each value once.")


def parse_varied(texts: Sequence[str]) -> dict[str, str]:
    """Return the text of the values for each flag of `--vary`."""
    varied: dict[str, str] = {}
    for text in texts:
        flag, _, values = text.removeprefix("--").partition("=")
        if not flag or not all(split_values(values)):
            raise InputError(
                f"--vary is {text!r}: give a flag and values, as in model.optimizer.lr=0.01,0.02."
            )
        refuse_set_here(f"--{flag}")
        if flag in varied:
            raise InputError(f"--vary has {flag} twice: give all its values at once, as in A,B,C.")
        varied[flag] = values
    return varied


def refuse_set_here(flag: str) -> None:
    """Raise InputError for a flag that a comparison sets itself."""
    if flag in SET_HERE:
        raise InputError(
            f"compare sets {flag} itself: give configs without a flag, --seeds and --folder."
        )


def split_values(text: str) -> list[str]:
    """Split at commas, but not at those inside [] or {}."""
    return re.split(r",(?![^\[{]*[\]}])", text)


def short(flag: str, value: str) -> str:
    """Return a name for a setting: lr=0.01, and for a class its name."""
    is_class = re.fullmatch(r"(\w+\.)*[A-Z]\w*", value)
    return value.rpartition(".")[2] if is_class else f"{flag.rpartition('.')[2]}={value}"


def make_label(parts: Iterable[str]) -> str:
    """Return a name for a folder."""
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))


def make_name(configs: Sequence[str], variants: Iterable[str]) -> str:
    """Return a name for the files of a comparison: of its config if there is one, and variants."""
    config = [f"{find_config(configs[0]).stem}-"] if len(configs) == 1 else []
    name = "".join([*config, "_vs_".join(variants)])
    is_long = len(name) > 80
    return f"{name[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if is_long else name


def whole_number(text: str) -> int:
    """Return the number; raise argparse's error if it is none."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error


def parse_args(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of `compare`, and the flags of `fit` that all variants share."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        usage=f"{PROGRAM} compare CONFIG... [options] [flags of fit, for all configs]",
        description="Train configs with several seeds, side by side, and say which is better. "
        "The same command continues a comparison that was stopped. Classes of your own need no "
        "--plugin, if you name them with their module: my_module.MyAttention.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--seeds", type=whole_number, help="number of seeds (default: 3)")
    vary = "values of a flag, for example model.optimizer.lr=0.003,0.01; repeat it for a grid"
    parser.add_argument("--vary", action="append", default=[], metavar="FLAG=A,B", help=vary)
    search = "instead: try this number of values from --vary, which takes ranges too, as in "
    search += "model.optimizer.lr=0.001..0.1"
    parser.add_argument("--search", type=whole_number, metavar="TRIALS", help=search)
    at_once = "number of runs at a time (default: one for each core or GPU)"
    parser.add_argument("--at_once", type=whole_number, metavar="RUNS", help=at_once)
    parser.add_argument("--name", help="name of the comparison (default: the names of the configs)")
    folder = "folder for all runs and tables (default: comparisons)"
    parser.add_argument("--folder", type=Path, default=FOLDER, help=folder)
    configs = [*takewhile(lambda word: not word.startswith("-"), args)]
    options, flags = parser.parse_known_args(args[len(configs) :])
    options.configs = configs
    if not configs:
        raise InputError("give two configs first, or one and --vary: compare CONFIG CONFIG.")
    numbers = {f"--{name}": vars(options)[name] for name in ("seeds", "search", "at_once")}
    require_positive(**{name: value for name, value in numbers.items() if value is not None})
    ranges = [text for text in options.vary if ".." in text]
    if ranges and not options.search:
        raise InputError(f"--vary {ranges[0]} is a range: give the number of trials by --search.")
    if options.name and Path(options.name).name != options.name:
        raise InputError(f"--name is {options.name!r}: give a file name, without slashes.")
    for before, word in pairwise(["", *flags]):
        if not word.startswith("-") and (not before.startswith("-") or "=" in before):
            raise InputError(f"{word} belongs to no flag: give all configs first, before any flag.")
    for flag in flags:
        refuse_set_here(flag.split("=")[0])
    return options, flags


def main(args: Sequence[str] | None = None) -> Comparison | None:
    """Run the command."""
    with exit_on_input_error(f"{PROGRAM} compare"):
        options, flags = parse_args(sys.argv[1:] if args is None else args)
        varied, configs = parse_varied(options.vary), options.configs
        folder, at_once = options.folder, options.at_once
        if options.search:
            from lit_gpt_scratch.cli.search import search

            if len(configs) > 1 or not varied or options.seeds or options.name:
                raise InputError(
                    "--search needs one config and at least one --vary. It takes one seed and no "
                    "--name."
                )
            print(search(configs[0], flags, varied, options.search, folder, at_once))
            return None
        variants = make_variants(configs, varied)
        shared = {label: [*own, *flags] for label, own in variants.items()}
        is_about = tuple(varied) if len(configs) == 1 else ()
        result = compare(shared, options.seeds or 3, folder, at_once, is_about)
        name = options.name or make_name(configs, variants)
        for suffix, text in ((".md", result.markdown()), (".json", result.json(folder))):
            with atomic_write(folder / f"{name}{suffix}") as file:
                file.write(text.encode())
    print(f"\n{result.text()}")
    print(f"\ntable        {folder / name}.md, .json")
    print(f"Next:\n  {shell_name()} report {in_shell(folder / f'{name}.json')}")
    if result.failures:
        raise SystemExit(1)
    return result
