"""Tests of the libraries: each fails when a private name of `private_api.py` changes."""

import pickletools
import subprocess
import sys
import warnings
import zipfile
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any, ClassVar

import jsonargparse
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn

from lit_gpt_scratch import private_api
from lit_gpt_scratch.errors import is_out_of_memory

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 1,
    "max_steps": 3,
}


class Model(BoringModel):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()


class Failing(pl.Callback):
    def __init__(self) -> None:
        raise ZeroDivisionError("built")


def train(callback: pl.Callback, model: Any = None, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(**{**QUIET, "callbacks": [callback], **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model or Model(), BoringDataModule())
    return trainer


def fit_checkpoint(folder: Path) -> dict[str, Any]:
    train(pl.Callback()).save_checkpoint(folder / "fit.ckpt")
    found: dict[str, Any] = torch.load(folder / "fit.ckpt", weights_only=True)
    return found


def test_private_api_imports_no_library() -> None:
    heavy = "{'torch', 'lightning', 'wandb', 'numpy'} & sys.modules.keys()"
    # The package is asked for too, since its `__init__` runs first.
    code = f"import sys, lit_gpt_scratch.private_api; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cli_writes_its_instantiator_into_hyperparameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    options = {"save_config_callback": None, "trainer_defaults": QUIET, "run": False, "args": []}
    own = LightningCLI(Model, BoringDataModule, **options).model.hparams
    assert own[private_api.INSTANTIATOR_KEY] == private_api.INSTANTIATOR
    options["args"] = ["--model", f"{__name__}.Model"]
    named = LightningCLI(BoringModel, BoringDataModule, subclass_mode_model=True, **options)
    assert named.model.hparams[private_api.CLASS_PATH_KEY] == f"{__name__}.Model"


def test_options_are_those_of_the_help() -> None:
    parser = ArgumentParser()
    parser.add_argument("--hidden")
    (option,) = (option for option in private_api.options(parser) if option.dest == "hidden")
    assert "--hidden" in parser.format_help()
    option.help = SUPPRESS
    assert "--hidden" not in parser.format_help()


def test_text_of_weights_that_do_not_fit() -> None:
    with pytest.raises(RuntimeError, match=private_api.WRONG_WEIGHTS):
        nn.Linear(2, 2).load_state_dict(nn.Linear(3, 3).state_dict())


def test_set_logged_step_decides_when_lightning_logs() -> None:
    class Shift(pl.Callback):
        updates: ClassVar[list[bool]] = []

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
            private_api.set_logged_step(trainer)
            self.updates.append(trainer._logger_connector.should_update_logs)

    train(Shift(), log_every_n_steps=2)
    assert Shift.updates == [False, True, False]


def test_lightning_asks_for_sigterm_by_a_method_that_is_replaced() -> None:
    """Before each batch, if there are several processes."""
    trainer = pl.Trainer(**QUIET)
    loop: Any = trainer.fit_loop.epoch_loop
    method = "_broadcast_sigterm_tensor"
    assert method in type(loop).advance.__code__.co_names
    assert getattr(loop, method).__func__ is getattr(type(loop), method)
    private_api.stop_asking_for_sigterm(trainer)
    assert getattr(loop, method)() is None
    assert not hasattr(getattr(loop, method), "__func__")


def test_not_counting_next_batch_counts_completed_batches_only() -> None:
    class Look(pl.Callback):
        seen: ClassVar[list[tuple[int, ...]]] = []

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            before = progress.state_dict()
            with private_api.not_counting_next_batch(trainer):
                for tracker in (progress.total, progress.current):
                    self.seen.append((tracker.ready, tracker.completed, trainer.global_step))
            assert progress.state_dict() == before

    train(Look())
    assert Look.seen == [(step,) * 3 for step in (0, 0, 1, 1, 2, 2)]


def test_steps_in_loops_are_in_a_fit_checkpoint(tmp_path: Path) -> None:
    checkpoint = fit_checkpoint(tmp_path)
    assert private_api.steps_in_loops(checkpoint["loops"]) == checkpoint["global_step"] == 3
    for other in ({}, {"fit_loop": []}):
        with pytest.raises((KeyError, TypeError)):
            private_api.steps_in_loops(other)


def test_read_pickle_is_the_record_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        assert private_api.read_pickle(path) == archive.read("a/data.pkl")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/version", b"3")
    assert private_api.read_pickle(tmp_path / "other.zip") is None


def test_names_in_a_pickle_of_tensors(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "a.ckpt")
    pickled = private_api.read_pickle(tmp_path / "a.ckpt")
    assert pickled
    names = {text for op, text, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    assert names == {private_api.REBUILD_TENSOR, "torch FloatStorage", "collections OrderedDict"}


def test_attributes_of_a_state_dict() -> None:
    assert vars(nn.Linear(2, 2).state_dict()).keys() == private_api.STATE_DICT_ATTRIBUTES


def test_lerp_interpolates() -> None:
    a, b = ([torch.randn(3, 2), torch.randn(4)] for _ in range(2))
    wanted = [x + 0.25 * (y - x) for x, y in zip(a, b, strict=True)]
    kept = [x.clone() for x in a]
    torch.testing.assert_close(private_api.foreach_lerp(a, b, 0.25), wanted)
    assert all(torch.equal(x, y) for x, y in zip(a, kept, strict=True))
    private_api.foreach_lerp_(a, b, 0.25)
    torch.testing.assert_close(a, wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_many_tensors_are_added_and_multiplied(transposed: bool) -> None:
    """Whether they are contiguous or not."""
    a, b = ([torch.randn(3, 2), torch.randn(3, 4)] for _ in range(2))
    if transposed:
        b = [torch.randn(2, 3).mT, torch.randn(4, 3).mT]
    wanted = [0.5 * x - 0.25 * y for x, y in zip(a, b, strict=True)]
    private_api.foreach_mul_(a, 0.5)
    private_api.foreach_add_(a, b, alpha=-0.25)
    torch.testing.assert_close(a, wanted)


@pytest.mark.parametrize("allowed", [True, False])
def test_lightning_clips_a_fused_optimizer_only_when_allowed(allowed: bool) -> None:
    class Fused(Model):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), fused=True)
            if allowed:
                private_api.allow_clipping(optimizer)
            return optimizer

    settings = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    if allowed:
        train(pl.Callback(), Fused(), **settings)
        return
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        train(pl.Callback(), Fused(), **settings)


def test_wandb_flushes_at_our_interval() -> None:
    import wandb

    (name, value), *_ = private_api.WANDB_FLUSH.items()
    assert getattr(wandb.Settings(), name) > 1, "the default loses little now: drop the setting"
    assert getattr(wandb.Settings(**private_api.WANDB_FLUSH), name) == value


def test_texts_of_a_request_that_memory_cannot_hold() -> None:
    for request in (lambda: torch.empty(1 << 45), lambda: np.empty(1 << 48)):
        with pytest.raises((RuntimeError, MemoryError)) as found:
            request()
        assert is_out_of_memory(found.value)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)


@pytest.mark.parametrize("shape", [(1 << 40, 1 << 40), (1 << 70,)])
def test_texts_of_a_size_beyond_all_integers(shape: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, TypeError)) as found:
        torch.empty(shape)
    assert private_api.OVERFLOW in str(found.value).lower()


LOSE = """
import os, sys, torch, torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
dist.barrier()
if rank: os._exit(0)
try:
    for _ in range(3): dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print("lost:", error)
"""


def test_text_of_gloo_when_a_process_ends(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", LOSE, str(r), str(tmp_path / "store")] for r in range(2)]
    started = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert "lost:" in said[0]
    assert private_api.LOST_PROCESS[0] in said[0]
    assert issubclass(torch.distributed.DistBackendError, RuntimeError)


def test_fused_groups_load_their_steps_to_the_device_of_the_parameters() -> None:
    parameter = nn.Parameter(torch.zeros(2, device="meta"))  # Muon marks its AdamW groups so
    for fused, device in {True: "meta", False: "cpu"}.items():
        optimizer = torch.optim.Optimizer([{"params": [parameter], "fused": fused}], {})
        state = optimizer.state_dict() | {"state": {0: {"step": torch.zeros(())}}}
        optimizer.load_state_dict(state)
        assert optimizer.state[parameter]["step"].device.type == device


def test_requests_reads_urls_as_urllib3_does() -> None:
    import requests
    import urllib3

    assert requests.models.parse_url is urllib3.util.parse_url


def test_rank_zero_only_has_a_rank() -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    assert rank_zero_only.rank == 0


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("auto", False), ("ddp", False), ("ddp_fork", True), ("ddp_spawn", True)],
)
def test_strategies_with_worker_processes(strategy: str, expected: bool) -> None:
    trainer = pl.Trainer(devices=1 if strategy == "auto" else 2, strategy=strategy, **QUIET)
    assert private_api.has_worker_processes(trainer) == expected
    assert hasattr(trainer.strategy.launcher, "procs") or not expected


def test_errors_of_union() -> None:
    """Also if the value is refused by the second type only after it was built."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[pl.Callback] | pl.Callback | None)
    config = parser.parse_args([f"--callbacks={__name__}.Failing"])
    with pytest.raises(ValueError, match="Union subtypes") as found:
        parser.instantiate_classes(config)
    errors = [type(error) for error in private_api.errors_of_union(found.value)]
    assert errors == [ValueError, ZeroDivisionError, ValueError]
    assert private_api.errors_of_union(ValueError()) == []


def test_compiled_code_is_kept_in_a_folder_that_the_user_may_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the compiler itself says."""
    from torch._inductor.runtime import cache_dir_utils

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir_utils.default_cache_dir())
    private_api.keep_compiled_code(tmp_path / "kept")
    assert Path(cache_dir_utils.cache_dir()) == tmp_path / "kept"
    private_api.keep_compiled_code(tmp_path / "other")
    assert Path(cache_dir_utils.cache_dir()) == tmp_path / "kept"


def test_a_compiled_network_runs_uncompiled_where_it_should() -> None:
    called: list[int] = []
    double = torch.compile(lambda x: 2 * x, backend=lambda graph, _: called.append(1) or graph)
    with private_api.uncompiled():
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert called == []
    double(torch.ones(2))
    assert called == [1]


def test_models_do_not_import_the_compiler() -> None:
    """That takes a second, and predict does not need it."""
    script = "import sys, lit_gpt_scratch.models; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_cannot_be_compiled_runs_as_it_is() -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    double = torch.compile(lambda x: 2 * x, backend=fail)
    with private_api.tolerate_failed_compilation():
        assert double(torch.ones(2)).tolist() == [2, 2]
    torch.compiler.reset()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        double(torch.ones(2))
