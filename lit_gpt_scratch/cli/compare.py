"""`lit-gpt-scratch compare`: trains several configs with several seeds, and gives a verdict.

A run with the same settings, seed and code is not repeated, and a stopped one is resumed.
"""

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.cli.jobs import Job, run_jobs
from lit_gpt_scratch.cli.parsing import find_config
from lit_gpt_scratch.cli.process_state import restore_process_state
from lit_gpt_scratch.errors import InputError, exit_on_input_error, require_positive
from lit_gpt_scratch.files import atomic_write
from lit_gpt_scratch.runs.comparison import (
    Comparison,
    describe_unequal,
    differing_settings,
    unequal_settings,
)
from lit_gpt_scratch.runs.provenance import code_sha256
from lit_gpt_scratch.runs.reading import flatten
from lit_gpt_scratch.shell import PROGRAM, in_shell, shell_name

FIRST_SEED = 1337
FOLDER = Path("comparisons")
# Flags of `fit` that a comparison sets itself.
SET_HERE = ("--config", "-c", "--ckpt_path", "--seed_everything", "--trainer.default_root_dir")


class Plan(CharCLI):
    """Checks all flags of a variant and opens its text. It trains nothing and writes no run."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Do nothing: a Trainer would look for devices and start processes."""

    def settings(self) -> dict[str, str]:
        """Return all settings by dotted name, and the hash of the code."""
        self.datamodule.open()
        settings = dict(flatten(self.resolve_config()))
        return settings | {"code_sha256": code_sha256(self.config.plugin)}


class Flags(CharCLI):
    """Reads the flags of a config, and builds nothing."""

    def instantiate_classes(self) -> None:
        """Do nothing."""


def plan(flags: Sequence[str]) -> dict[str, str]:
    """Return the settings of `fit` with these flags; raise InputError if it refuses them."""
    with restore_process_state():
        cli = Plan("fit", list(flags))
        with cli.name_flags():
            return cli.settings()


def flags_of(config: str) -> list[str]:
    """Return all flags that have an effect with a config, such as model.net.width."""
    with restore_process_state():
        names = Flags("fit", ["--config", config]).config.keys()
    return [name.replace(".init_args", "").removesuffix(".class_path") for name in names]


def with_seed(settings: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return settings with another seed. The data's seed follows unless a config sets it."""
    names = ["seed_everything"]
    if settings["data.seed"] == settings["seed_everything"]:
        names.append("data.seed")
    return {**settings, **dict.fromkeys(names, str(seed))}


def compare(
    variants: Mapping[str, Sequence[str]],
    seeds: int = 3,
    folder: Path = FOLDER,
    at_once: int | None = None,
    varied: Sequence[str] = (),
) -> Comparison:
    """Train all variants with all seeds; return their losses and the verdicts.

    Args:
        variants: The flags of `fit` for each label. All others are compared with the first.
        seeds: Number of seeds: 1337, 1338 and so on.
        folder: The runs are in FOLDER/runs/LABEL.
        at_once: Number of runs at a time; the default is one for each core or GPU.
        varied: Flags that the comparison is about; by default, the first group that differs.

    Raises:
        InputError: A flag is wrong, or a run has failed.
    """
    require_positive(seeds=seeds, jobs=1 if at_once is None else at_once)
    settings = {label: plan(flags) for label, flags in variants.items()}
    different = differing_settings(settings)
    unequal = unequal_settings(different, varied)
    warnings = [describe_unequal(unequal)] if unequal else []
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    jobs = [
        Job(label, seed, flags, with_seed(settings[label], seed), folder)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for label, flags in variants.items()
    ]
    run_jobs(jobs, environments(len(jobs), at_once))
    outcomes = {label: [job.outcome() for job in jobs if job.label == label] for label in variants}
    return Comparison(outcomes, different, warnings, machine())


def environments(runs: int, at_once: int | None) -> list[dict[str, str]]:
    """Return the environment variables of the processes that run at the same time.

    On a CPU they share the cores. On GPUs, each has one.
    """
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    count = min(at_once or gpus or cores, runs)
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    devices = [{"CUDA_VISIBLE_DEVICES": str(k % gpus)} if gpus > 1 else {} for k in range(count)]
    return [threads | os.environ | device for device in devices]


def machine() -> str:
    """Return the processor, the GPU and the PyTorch version of this machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{os.cpu_count()} cores of {name}, {device}, PyTorch {torch.__version__}"


def make_variants(configs: Sequence[str], varied: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the flags of each variant by its label: configs, times all values of `--vary`."""
    grid = [[(flag, value) for value in split_values(text)] for flag, text in varied.items()]
    variants: dict[str, list[str]] = {}
    for config in configs:
        for changes in product(*grid):
            names = [short(flag, value) for flag, value in changes]
            stem = [find_config(config).stem] if len(configs) > 1 or not names else []
            if (label := make_label([*stem, *names])) in variants:
                raise InputError(
                    f"two variants are called {label}: give each value once, and each config once, "
                    "in files of different names."
                )
            variants[label] = ["--config", config, *(f"--{flag}={v}" for flag, v in changes)]
    return variants


def parse_varied(texts: Sequence[str]) -> dict[str, str]:
    """Return the text of the values for each flag of `--vary`."""
    varied = {}
    for text in texts:
        flag, _, values = text.removeprefix("--").partition("=")
        if not flag or not all(split_values(values)):
            raise InputError(
                f"--vary is {text!r}: give a flag and values, as in model.optimizer.lr=0.01,0.02."
            )
        varied[flag] = values
    return varied


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


def parse_args(args: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of `compare`, and the flags of `fit` that all variants share."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        usage=f"{PROGRAM} compare CONFIG... [options] [flags of fit, for all configs]",
        description="Train configs with several seeds, side by side, and say which is better.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="a file, or a config's name")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    vary = "values of a flag, for example model.optimizer.lr=0.003,0.01; repeat it for a grid"
    parser.add_argument("--vary", action="append", default=[], metavar="FLAG=A,B", help=vary)
    search = "instead: try this number of values from ranges, as in model.optimizer.lr=0.001..0.1"
    parser.add_argument("--search", type=int, metavar="TRIALS", help=search)
    jobs = "number of runs at a time (default: one for each core or GPU)"
    parser.add_argument("--jobs", type=int, help=jobs)
    parser.add_argument("--name", help="name of the comparison (default: the names of the configs)")
    folder = "folder for all runs and tables (default: comparisons)"
    parser.add_argument("--folder", type=Path, default=FOLDER, help=folder)
    options, flags = parser.parse_known_args(args)
    if not options.configs:
        raise InputError("give two configs, or one and --vary: compare CONFIG CONFIG.")
    for flag in flags:
        if flag.split("=")[0] in SET_HERE:
            raise InputError(
                f"compare sets {flag.split('=')[0]} itself: give configs without a flag, --seeds "
                "and --folder."
            )
    return options, flags


def main(args: Sequence[str] | None = None) -> Comparison | None:
    """Run the command."""
    with exit_on_input_error(f"{PROGRAM} compare"):
        options, flags = parse_args(args)
        varied, configs = parse_varied(options.vary), options.configs
        if options.search:
            from lit_gpt_scratch.cli.search import search

            if len(configs) > 1 or not varied:
                raise InputError("--search needs one config, and at least one --vary.")
            print(search(configs[0], flags, varied, options.search, options.folder, options.jobs))
            return None
        variants = make_variants(configs, varied)
        if len(variants) < 2:
            raise InputError("there is one variant: give two configs, or two values by --vary.")
        shared = {label: [*own, *flags] for label, own in variants.items()}
        is_about = tuple(varied) if len(configs) == 1 else ()
        result = compare(shared, options.seeds, options.folder, options.jobs, is_about)
        name = options.name or "_vs_".join(variants)[:80]
        for suffix, text in ((".md", result.markdown()), (".json", result.json(options.folder))):
            with atomic_write(options.folder / f"{name}{suffix}") as file:
                file.write(text.encode())
    print(f"\n{result.text()}")
    print(f"\ntable        {options.folder / name}.md, .json")
    print(f"Next:\n  {shell_name()} report {in_shell(options.folder / f'{name}.json')}")
    return result
