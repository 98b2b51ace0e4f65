"""What W&B records offline, read back with the real W&B package."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from laws import train_small

from lit_gpt_scratch import cli
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs import read_wandb
from lit_gpt_scratch.runs.dashboard import PANELS
from lit_gpt_scratch.runs.folder import read_rows

OFFLINE = [
    "--wandb.mode=offline",
    "--trainer.log_every_n_steps=2",
    "--trainer.val_check_interval=2",
]
LATER = ("wandb_id", "finished")  # in about.yaml only


def segments(*folders: Path) -> list[Path]:
    """Return W&B's own folders inside some runs' folders."""
    return [segment for folder in folders for segment in folder.glob("wandb/offline-run-*")]


def records(segment: Path) -> list[dict[str, Any]]:
    """Return everything that W&B wrote, by its own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(segment), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> CharCLI:
    """A run that W&B recorded offline, without an account."""
    return train_small(tmp_path_factory.mktemp("offline"), *OFFLINE)


@pytest.mark.slow
def test_wandb_has_the_same_values_as_metrics_csv(run: CharCLI) -> None:
    """Every metric of every step, and every panel's key."""
    (segment,) = segments(run.folder)
    rows = read_wandb(segment)
    expected: dict[int, dict[str, float]] = {2: {}, 4: {}}
    with (run.folder / "metrics.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):  # of training, then of validation
            values = {k: float(v) for k, v in row.items() if v and k != "step"}
            expected[int(row["step"])].update(values)
    assert [*rows] == [*expected]
    for step, values in expected.items():
        assert {key: rows[step][key] for key in values} == pytest.approx(values, rel=1e-5)
    for panel in PANELS:
        names = (
            panel.key,
            *(key for key in rows[4] if key.startswith((f"{panel.key}.", f"{panel.key}/"))),
        )
        assert {*names} & {*rows[4]}, panel


@pytest.mark.slow
def test_tables_grow_and_each_validation_has_an_image(run: CharCLI) -> None:
    (segment,) = segments(run.folder)
    for key in ("samples", "symbols"):
        rows = read_wandb(segment)
        assert [rows[step][f"{key}.increment_num"] for step in rows] == [0, 1]
        _, written = read_rows(run.folder / f"{key}.csv")
        parts = sorted(
            segment.glob(f"files/media/table/{key}_*"), key=lambda p: p.name.split("_")[1]
        )
        table = [
            row for part in parts for row in json.loads(part.read_text(encoding="utf-8"))["data"]
        ]
        assert [[str(cell) for cell in row] for row in table] == [
            [*row.values()] for row in written
        ]
    images = [row["attention.path"] for row in rows.values()]
    assert len({(segment / "files" / path).read_bytes() for path in images}) == 2


@pytest.mark.slow
def test_wandb_config_has_the_contents_of_about_yaml(run: CharCLI) -> None:
    (segment,) = segments(run.folder)
    (config,) = [r["run"]["config"]["update"] for r in records(segment) if r["type"] == "run"]
    about = yaml.safe_load((run.folder / "about.yaml").read_text(encoding="utf-8"))
    recorded = {name: value for name, value in about.items() if name not in LATER}
    assert {name: config[name] for name in recorded} == recorded
    assert about["parameters"] == sum(p.numel() for p in run.model.net.parameters())
    assert about["sha256"] == run.datamodule.hparams["sha256"]
    assert segment.name.endswith(about["wandb_id"])
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert about["git_commit"] == (head.stdout.strip() or None)


@pytest.mark.slow
def test_the_best_checkpoint_is_an_artifact_with_its_metrics(run: CharCLI) -> None:
    (segment,) = segments(run.folder)
    found = [r["artifact"] for r in records(segment) if r["type"] == "artifact"]
    (model,) = [artifact for artifact in found if artifact["type"] == "model"]
    (content,) = model["manifest"]["contents"]
    assert Path(content["local_path"]) == run.folder / "checkpoints" / "best.ckpt"
    assert json.loads(model["metadata"])["best val/loss"] == pytest.approx(
        float(run.trainer.callback_metrics["val/loss"]), rel=1e-5
    )
    assert "best" in model["aliases"]


@pytest.mark.slow
def test_wandb_writes_only_inside_the_run_folder(run: CharCLI) -> None:
    (segment,) = segments(run.folder)
    found = [r["artifact"] for r in records(segment) if r["type"] == "artifact"]
    paths = [Path(entry["local_path"]) for a in found for entry in a["manifest"]["contents"]]
    assert paths
    assert all(path.is_relative_to(run.folder) and path.is_file() for path in paths)
    assert "WANDB_DATA_DIR" not in os.environ


def flags(root: Path) -> list[str]:
    """Return the command of a small offline `fit`, which saves about every half second."""
    return [
        "fit", "--data.corpus=sample", "--data.sample_size=20000", "--data.context=64",
        "--data.batch_size=1024", "--model.schedule=null", "--model.net=Bigram",
        "--trainer.log_every_n_steps=10", "--trainer.val_check_interval=20",
        "--wandb.mode=offline", "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={root}", "--name=run",
    ]  # fmt: skip


def fit(root: Path, *args: str) -> subprocess.Popen[str]:
    """Start it as a process."""
    # The process must start its own W&B service instead of using that of these tests.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return subprocess.Popen(
        [sys.executable, "-m", "lit_gpt_scratch", *flags(root), *args],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_same_wandb_run(
    tmp_path: Path,
) -> None:
    """The rows of both segments together equal those of a run that was never killed."""
    first = fit(tmp_path, "--trainer.max_steps=1000000")
    last = tmp_path / "runs/run/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # W&B writes its log to disk with a delay
    first.send_signal(signal.SIGKILL)
    first.wait()
    step = torch.load(last, weights_only=True)["global_step"]
    total = step + 40
    # In this process: a new one takes seconds to start.
    cli.main([*flags(tmp_path), f"--trainer.max_steps={total}", f"--ckpt_path={last}"])
    cli.main([*flags(tmp_path / "reference"), f"--trainer.max_steps={total}"])

    one, two = sorted(segments(tmp_path / "runs/run/version_0"), key=lambda path: path.name)
    assert one.name.rpartition("-")[2] == two.name.rpartition("-")[2]
    merged = read_wandb(two, one)  # in any order
    reference = read_wandb(*segments(tmp_path / "reference/runs/run/version_0"))
    logged = sorted({1, *range(10, total + 1, 10), total})  # at 1: the first validation
    assert [*merged] == logged == [*reference]
    for at in range(20, total + 1, 20):
        assert merged[at]["val/loss"] == reference[at]["val/loss"]
        assert merged[at]["tokens_seen"] == reference[at]["tokens_seen"]


@pytest.mark.slow
def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """Also if the resumed run logs at other steps."""
    first = train_small(tmp_path, "--trainer.max_steps=2", *OFFLINE).folder
    saved = shutil.copy(first / "checkpoints" / "last.ckpt", tmp_path / "saved.ckpt")
    folders = [first]
    for steps, every in ((6, 1), (5, 3)):
        more = [f"--trainer.max_steps={steps}", f"--ckpt_path={saved}", *OFFLINE]
        more += [f"--trainer.log_every_n_steps={every}", "--trainer.val_check_interval=100"]
        folders.append(train_small(tmp_path, *more).folder)
        time.sleep(1)  # W&B's folder names have a resolution of one second
    assert [*read_wandb(*segments(*folders[:2]))] == [2, 3, 4, 5, 6]
    assert [*read_wandb(*segments(*folders))] == [2, 3, 5]


@pytest.mark.slow
def test_a_run_without_wandb_keeps_the_wandb_id(tmp_path: Path, run: CharCLI) -> None:
    last = shutil.copy(run.folder / "checkpoints" / "last.ckpt", tmp_path / "elsewhere.ckpt")
    disabled = train_small(tmp_path, "--trainer.max_steps=6", f"--ckpt_path={last}")
    again = disabled.folder / "checkpoints" / "last.ckpt"
    recorded = train_small(tmp_path, "--trainer.max_steps=8", f"--ckpt_path={again}", *OFFLINE)
    assert recorded.folder == disabled.folder
    (first,), (second,) = segments(run.folder), segments(recorded.folder)
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    assert [*read_wandb(first, second)] == [2, 4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../elsewhere", "a b", 7, "x" * 65])
def test_an_invalid_wandb_id_in_a_checkpoint_is_refused(
    tmp_path: Path, run: CharCLI, name: Any
) -> None:
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(checkpoint | {"wandb_id": name}, tmp_path / "invalid.ckpt")
    with pytest.raises((SystemExit, InputError)):
        train_small(tmp_path, "--trainer.max_steps=6", f"--ckpt_path={tmp_path / 'invalid.ckpt'}")


def test_reading_a_folder_that_wandb_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run that W&B recorded"):
        read_wandb(tmp_path)
