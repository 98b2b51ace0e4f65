"""`--trainer.strategy fsdp2`: weights that are split between processes train as whole ones do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compare_runs import last, same, state, tables
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_gpt_scratch import cli
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.training.checkpointing import AGREE_STEPS
from lit_gpt_scratch.training.sharding import require_supported

HERE = Path(__file__).parents[1]
LIMIT = 400  # seconds, after which the processes hang
FLAGS = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=32", "--data.batch_size=8",
    "--model.compile=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    "--trainer.max_steps=12", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=6",
]  # fmt: skip
# Two processes divide neither the width of the first network nor the number of blocks.
NETS = {
    "classic": [
        "--config=gpt", "--model.net.layers=3", "--model.net.width=27", "--model.net.dropout=0",
        "--model.net.attention.heads=3", "--model.net.attention.dropout=0",
        "--model.optimizer.lr=0.003",
    ],
    "muon": [
        "--config=gpt_cpu", "--model.net.layers=3", "--model.net.width=30",
        "--model.net.attention.heads=1", "--model.optimizer.exact=true",
        "--model.optimizer.weight_decay=0.1", "--trainer.accumulate_grad_batches=2",
    ],
    "ensemble": [
        "--config=gpt_cpu_long", "--model.net.size=2", "--model.net.net.layers=1",
        "--model.net.net.width=16", "--model.net.net.dropout=0.2", "--model.optimizer.exact=true",
    ],
}  # fmt: skip
STOP = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=7"]
STOP_RANK_1 = [*STOP, "--trainer.callbacks.rank=1"]
FSDP2 = ["--trainer.devices=2", "--trainer.strategy=fsdp2"]
TOLERANCE = 1e-5


def fit(root: Path, net: str, *flags: str, name: str = "") -> list[str]:
    """Return the command of a run in a folder; its name is the network's unless it is given."""
    place = [f"--trainer.default_root_dir={root}", f"--name={name or net}"]
    return ["fit", *NETS[net], *FLAGS, *place, *flags]


def folder_of(root: Path, name: str) -> Path:
    return root / "runs" / name / "version_0"


def stop(command: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        with pytest.raises(SystemExit):
            cli.main(command)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of one process: `classic`, `muon`, and `onward`, which was stopped."""
    root = tmp_path_factory.mktemp("single")
    for net in ("classic", "muon"):
        cli.main(fit(root, net))
    stop(fit(root, "muon", *STOP, name="onward"))
    return root


@pytest.fixture(scope="module")
def split(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of two processes. They also continue the run `onward`."""
    root = tmp_path_factory.mktemp("split")
    again = ["--trainer.callbacks=null", *FSDP2]
    stopped, onward = (last(folder_of(*run)) for run in ((root, "stopped"), (single, "onward")))
    commands = [
        fit(root, "classic", *FSDP2),
        fit(root, "muon", *FSDP2),
        fit(root, "classic", *FSDP2, *STOP_RANK_1, name="back"),
        fit(root, "ensemble", *FSDP2),
        fit(root, "ensemble", *FSDP2, *STOP_RANK_1, name="stopped"),
        fit(root, "ensemble", *again, f"--ckpt_path={stopped}", name="stopped"),
        fit(root, "ensemble", "--trainer.devices=2", "--trainer.strategy=ddp", name="ddp"),
        fit(single, "muon", *again, f"--ckpt_path={onward}", name="onward"),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*torchrun, str(HERE / "sharded_fits.py"), json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Notice" not in done.stderr, done.stderr
    assert done.stdout.count("ended with 143") == 2  # rank 0, of both runs that were stopped
    assert done.stdout.count("A sample:") == 6
    return root


def assert_same_run(folder: Path, expected: Path) -> None:
    """Check all figures, weights and the optimizer's state, up to rounding; and all samples."""
    ours, theirs = tables(folder), tables(expected)
    assert ours.keys() == theirs.keys() >= {"metrics.csv", "samples.csv", "symbols.csv"}
    assert ours["samples.csv"] == theirs["samples.csv"]
    for name in ("metrics.csv", "symbols.csv"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one.keys() == other.keys()
            for column, text in other.items():
                assert one[column] == text or float(one[column]) == pytest.approx(
                    float(text), abs=TOLERANCE, rel=TOLERANCE
                ), column
    images = [[path.name for path in side.glob("attention/*.png")] for side in (folder, expected)]
    assert images[0]
    assert images[0] == images[1]
    sides = []
    for side in (folder, expected):
        saved = state(side)
        (optimizer,) = saved["optimizer_states"]
        sides.append((saved["state_dict"], optimizer["state"], optimizer["param_groups"]))
    (weights, states, groups), (*expected_tensors, expected_groups) = sides
    torch.testing.assert_close([weights, states], expected_tensors, atol=TOLERANCE, rtol=0)
    assert groups == expected_groups


@pytest.mark.slow
@pytest.mark.parametrize("net", ["classic", "muon"])
def test_two_processes_with_split_weights_train_as_one(single: Path, split: Path, net: str) -> None:
    """The classic GPT with AdamW, and the modern one with Muon."""
    assert_same_run(folder_of(split, net), folder_of(single, net))
    about = [(folder_of(root, net) / "about.yaml").read_text() for root in (single, split)]
    assert about[0].splitlines()[:5] == about[1].splitlines()[:5]  # network and parameters


@pytest.mark.slow
def test_a_stopped_run_with_split_weights_resumes_bit_for_bit(split: Path) -> None:
    """An ensemble with dropout."""
    ours, theirs = folder_of(split, "stopped"), folder_of(split, "ensemble")
    assert same(state(ours), state(theirs))
    assert tables(ours) == tables(theirs)


@pytest.mark.slow
def test_split_weights_train_as_with_ddp(split: Path) -> None:
    """Also with dropout, and an ensemble whose members share the texts of a process."""
    assert_same_run(folder_of(split, "ensemble"), folder_of(split, "ddp"))


@pytest.mark.slow
def test_a_run_goes_on_with_split_weights_or_without(single: Path, split: Path) -> None:
    assert_same_run(folder_of(single, "onward"), folder_of(single, "muon"))
    assert (
        torch.load(last(folder_of(split, "back")), weights_only=True)["global_step"] == AGREE_STEPS
    )
    resume = [f"--ckpt_path={last(folder_of(split, 'back'))}", "--trainer.callbacks=null"]
    cli.main(fit(split, "classic", *resume, name="back"))
    assert_same_run(folder_of(split, "back"), folder_of(single, "classic"))


@pytest.mark.slow
def test_one_process_opens_a_checkpoint_of_two(
    single: Path, split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, losses = [], []
    for root in (single, split):
        checkpoint = f"--ckpt_path={last(folder_of(root, 'muon'))}"
        losses.append(
            float(cli.main(["validate", checkpoint]).trainer.callback_metrics["val/loss"])
        )
        capsys.readouterr()
        cli.main(["predict", checkpoint, "--max_new_tokens=20"])
        texts.append(capsys.readouterr().out)
    assert losses[0] == pytest.approx(losses[1], abs=TOLERANCE)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"strategy": ModelParallelStrategy()}, "ModelParallelStrategy, which is not supported"),
        ({"precision": "64-true"}, "precision is 64-true: .* must be one of 32-true"),
        ({"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging copies whole networks"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "StochasticWeightAveraging copies"),
    ],
)
def test_what_split_weights_cannot_do_is_refused(settings: dict[str, Any], problem: str) -> None:
    defaults = {"strategy": "fsdp2", "accelerator": "cpu", "devices": 2, "logger": False}
    with pytest.raises(InputError, match=problem):
        require_supported(pl.Trainer(**defaults | settings))
    require_supported(pl.Trainer(**defaults))
