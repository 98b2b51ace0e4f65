"""Checks the flags of `fit` and returns all settings of the run. It trains nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.cli.process_state import restore_process_state
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.groups import SEEDS
from lit_gpt_scratch.runs.provenance import code_sha256
from lit_gpt_scratch.runs.reading import flatten
from lit_gpt_scratch.training.hardware import is_small, kind_of_device


class Recipe(NamedTuple):
    """What `fit` would train.

    Attributes:
        settings: All values by dotted name, as in config.yaml, and the hash of the code.
        seeds: Settings that follow the seed. data.seed does, unless a config sets it.
        is_small: Whether `fit` would use one thread.
        device: The kind of device: cpu, cuda or mps.
    """

    settings: Mapping[str, str]
    seeds: tuple[str, ...] = SEEDS
    is_small: bool = True
    device: str = "cpu"

    def with_seed(self, seed: int) -> dict[str, str]:
        """Return the settings with another seed."""
        return {**self.settings, **dict.fromkeys(self.seeds, str(seed))}


class Plan(CharCLI):
    """Checks all flags and opens the text. It trains nothing and writes no run."""

    def before_instantiate_classes(self) -> None:
        self.seeds = SEEDS if self.config.data.seed is None else SEEDS[:1]
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Do nothing: a Trainer would look for devices and start processes."""

    def recipe(self) -> Recipe:
        data, trainer = self.datamodule, self.config.trainer
        useless = {
            "limit_val_batches": trainer.limit_val_batches == 0,
            "fast_dev_run": bool(trainer.fast_dev_run),
            "logger": trainer.logger is False,
        }
        if any(useless.values()):
            name = next(name for name, is_set in useless.items() if is_set)
            raise InputError(
                f"--trainer.{name} is {trainer[name]}: such runs have no losses that can be "
                "compared. Leave it out."
            )
        data.open()
        settings = dict(flatten(self.resolve_config()))
        settings["code_sha256"] = code_sha256(self.config.plugin)
        small = is_small(self.model.net, data.batch_size * data.context)
        return Recipe(settings, self.seeds, small, kind_of_device(trainer.accelerator))


class Flags(CharCLI):
    """Reads the flags of a config, and builds nothing."""

    def instantiate_classes(self) -> None:
        """Do nothing."""


def plan(flags: Sequence[str]) -> Recipe:
    """Return what `fit` would train with these flags; raise InputError if it refuses them."""
    with restore_process_state():
        cli = Plan("fit", list(flags))
        with cli.name_flags():
            return cli.recipe()


def flags_of(config: str) -> list[str]:
    """Return all flags that have an effect with a config, such as model.net.width."""
    with restore_process_state():
        names = Flags("fit", ["--config", config]).config.keys()
    return [name.replace(".init_args", "").removesuffix(".class_path") for name in names]
