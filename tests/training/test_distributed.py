"""Several real processes train together, started by the Trainer's flags."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from compare_runs import last, same, state, tables
from nbclient import NotebookClient

from lit_gpt_scratch import cli
from lit_gpt_scratch.runs import read_wandb
from lit_gpt_scratch.training import distributed

HERE = Path(__file__).parents[1]
LIMIT = 240  # seconds, after which a process hangs
FLAGS = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=32", "--data.batch_size=24",
    "--model.net.layers=2", "--model.net.width=32", "--model.optimizer.exact=true",
    "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_steps=50",
    "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=20", "--name=run",
]  # fmt: skip
DROPOUT = ["--model.net.dropout=0.2", "--trainer.log_every_n_steps=7"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
TWO_MACHINES = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
MEASURED = ("train/loss", "grad_norm", "lr", "val/loss", "val/bpc", "val/gap", "tokens_seen")

Job = subprocess.Popen[str]


def start(root: Path, *flags: str, by: list[str] | None = None, **environment: str) -> Job:
    """Start `fit` in a folder as a user would, in a process group of its own."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [*(by or [sys.executable]), "-m", "lit_gpt_scratch", "fit", *FLAGS]
    return subprocess.Popen(
        [*command, f"--trainer.default_root_dir={root}", *flags],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end(job: Job, code: int = 0) -> str:
    """Wait for the exit code and the end of all processes; return stdout and stderr."""
    try:
        out, err = job.communicate(timeout=LIMIT)
        deadline = time.monotonic() + 30
        while is_alive(job.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not is_alive(job.pid), "a process is left"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, 9)
    assert job.returncode == code, err
    assert "Traceback" not in err, err
    return out + err


def is_alive(group: int) -> bool:
    """Return whether any process of a group is alive."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            status, _, its_group = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            if int(its_group) == group and status != "Z":
                return True
    return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def resumed(folder: Path, *flags: str) -> list[str]:
    return [f"--ckpt_path={last(folder)}", "--trainer.callbacks=null", *flags]


def only_run(root: Path) -> Path:
    """Return the folder of the only run under a root."""
    (folder,) = (root / "runs").glob("*/*")
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_equal_rows(folder: Path, single: Path) -> None:
    """Check for the same rows, none repeated or missing, with equal values up to rounding."""
    ours, theirs = rows(folder), rows(single)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name in MEASURED:
        figures = [[float(row[name]) for row in side if row[name]] for side in (ours, theirs)]
        assert len(figures[1]) >= 3
        assert figures[0] == pytest.approx(figures[1], abs=1e-6, rel=0), name


def row_keys(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "symbols.csv").open(newline="", encoding="utf-8") as file:
        return [(row["step"], row["symbol"], row["count"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of one process. Beside it, 0.pt holds the inputs of its training."""
    root = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        note = [
            "--trainer.callbacks+=extra_callbacks.RecordInputs",
            f"--trainer.callbacks.folder={root}",
        ]
        yield cli.main(["fit", *FLAGS, f"--trainer.default_root_dir={root}", *note]).folder


@pytest.mark.slow
def test_two_processes_train_as_one(single: Path, tmp_path: Path) -> None:
    """Same windows, same losses, one set of files, one W&B run; each line is printed once."""
    note = [
        "--trainer.callbacks+=extra_callbacks.RecordInputs",
        f"--trainer.callbacks.folder={tmp_path}",
    ]
    said = end(start(tmp_path, *TWO, *note, WANDB_MODE="offline"))
    folder = only_run(tmp_path)
    assert_equal_rows(folder, single)
    assert row_keys(folder) == row_keys(single), "every character once, whoever read it"
    all_rows = torch.load(single.parents[2] / "0.pt")
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(torch.stack(shares, dim=2).flatten(1, 2), all_rows), "the same windows"
    assert {path.name for path in folder.iterdir()} - {"wandb"} == {
        path.name for path in single.iterdir()
    }
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    for line in ("network ", "batch ", "step     20 of 50", "last ", "A sample:", "wandb sync"):
        assert said.count(line) == 1, said


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one(single: Path, tmp_path: Path) -> None:
    teach = f"--model.teacher={single}"
    one = ["fit", *FLAGS, teach, f"--trainer.default_root_dir={tmp_path / 'one'}"]
    expected = cli.main(one).folder
    end(start(tmp_path / "two", *TWO, teach))
    assert_equal_rows(only_run(tmp_path / "two"), expected)
    losses = [{row["train/loss"] for row in rows(folder)} for folder in (expected, single)]
    assert losses[0] != losses[1]  # the teacher did something


@pytest.mark.slow
def test_a_run_resumes_with_any_number_of_processes(single: Path, tmp_path: Path) -> None:
    """Two processes (a signal to the second one stops them), then one, then three."""
    ask = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=19"]
    said = end(start(tmp_path, *TWO, *ask, "--trainer.callbacks.rank=1"), 143)
    folder = only_run(tmp_path)
    assert said.count("To resume:") == 1
    assert "Stopped at step 20 of 50" in said
    ask[1] = "--trainer.callbacks.step=34"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["fit", *FLAGS, f"--trainer.default_root_dir={tmp_path}", *resumed(folder)[:1], *ask]
        )
    assert stop.value.code == 143
    end(start(tmp_path, *resumed(folder, "--trainer.devices=3", "--trainer.strategy=ddp")))
    assert only_run(tmp_path) == folder
    assert_equal_rows(folder, single)


@pytest.mark.slow
def test_processes_agree_every_ten_steps_and_stop_at_the_same_one(tmp_path: Path) -> None:
    """They wait for each other at no other step. One has the signal; the clock of rank 0 counts."""
    ask = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=23"]
    ask += ["--trainer.callbacks.rank=1", "--trainer.callbacks+=extra_callbacks.RecordCollectives"]
    ask += [f"--trainer.callbacks.folder={tmp_path}", "--data.sample_size=100000"]
    rare = ["--trainer.val_check_interval=1000", "--trainer.log_every_n_steps=1000"]
    said = end(start(tmp_path, *TWO, *ask, *rare), 143)
    assert "Stopped at step 30 of 50" in said
    assert state(only_run(tmp_path))["global_step"] == 30
    for rank in range(2):
        calls = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert calls[:4] == [[step, "all_reduce"] for step in (0, 10, 20, 30)]
        assert {step for step, _ in calls[4:]} == {30}, "the rest is the checkpoint of the end"
        assert calls[-1] == [30, "end"]


def test_one_process_agrees_with_nobody() -> None:
    assert distributed.cpu_group(SimpleNamespace(world_size=1)) is None
    assert distributed.maxima([15, 0], None) == [15, 0]


@pytest.mark.slow
def test_two_torchrun_groups_train_as_one(single: Path, tmp_path: Path) -> None:
    """As on two machines with a shared disk."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    jobs = [
        start(tmp_path, *TWO_MACHINES, by=[*torchrun, f"--node_rank={rank}"]) for rank in range(2)
    ]
    said = [end(job) for job in jobs]
    folder = only_run(tmp_path)
    assert_equal_rows(folder, single)
    assert {path.name for path in folder.iterdir()} == {path.name for path in single.iterdir()}
    assert "Next:" in said[0]
    assert said[1].strip() == "", "the other machine's terminal stays empty"


@pytest.mark.slow
def test_processes_with_different_flags_do_not_train(tmp_path: Path) -> None:
    """They are started by environment variables, as on a cluster; each reports what differs."""
    port = str(free_port())
    jobs = [
        start(
            tmp_path, *TWO_MACHINES, f"--data.seed={rank}",
            NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        ) for rank in range(2)
    ]  # fmt: skip
    said = [end(job, 2) for job in jobs]
    assert "the processes of this run differ on another machine" in said[0]
    assert "the processes of this run differ here: data.seed" in said[1]
    assert list((tmp_path / "runs").glob("*/*")) == []


@pytest.mark.slow
def test_a_stopped_job_resumes_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, after Ctrl-C to all ranks; a signal to one rank is tested above."""
    untouched = start(tmp_path / "untouched", *TWO, *DROPOUT)
    ask = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=23"]
    ask += ["--trainer.callbacks.name=SIGINT", "--trainer.callbacks.group=true"]
    said = end(start(tmp_path / "stopped", *TWO, *DROPOUT, *ask), 130)
    folder = only_run(tmp_path / "stopped")
    assert said.count(f"--ckpt_path {last(folder)}") == 1
    end(start(tmp_path / "stopped", *resumed(folder, *TWO, *DROPOUT)))
    end(untouched)
    there = only_run(tmp_path / "untouched")
    assert only_run(tmp_path / "stopped") == folder
    assert tables(folder) == tables(there)
    assert same(state(folder), state(there))


@pytest.mark.slow
def test_all_processes_end_with_rank_zero(tmp_path: Path) -> None:
    """Also if rank 0 is killed while the others start. Its error is printed once."""
    loading = start(tmp_path / "loading", *TWO)
    next(line for line in loading.stderr or () if line.startswith("run "))
    time.sleep(0.5)
    loading.terminate()
    ask = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=23"]
    killed = start(tmp_path / "killed", *TWO, *ask, "--trainer.callbacks.name=SIGKILL")
    wild = ["--model.optimizer.lr=1e38", "--model.schedule=null"]
    said = end(start(tmp_path / "wild", *TWO, *wild), 2)
    assert said.count("lit-gpt-scratch: error: the training loss is") == 1, said
    end(loading, -15)
    end(killed, -9)
    assert last(only_run(tmp_path / "killed")).exists()


def test_accumulating_three_batches_equals_one_larger_batch(single: Path, tmp_path: Path) -> None:
    """Same windows, same losses up to rounding."""
    parts = ["--data.batch_size=8", "--trainer.accumulate_grad_batches=3"]
    parts += ["--trainer.val_check_interval=60", f"--trainer.default_root_dir={tmp_path}"]
    assert_equal_rows(cli.main(["fit", *FLAGS, *parts]).folder, single)


def test_a_batch_size_not_divisible_by_the_devices_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([
            "fit", *FLAGS, *TWO, f"--trainer.default_root_dir={tmp_path}", "--data.batch_size=15"
        ])  # fmt: skip
    assert stop.value.code == 2
    assert "give a multiple of 2" in capsys.readouterr().err


def run_in_notebook(root: Path, *flags: str) -> str:
    """Run `fit` in a real notebook kernel; return what the cell prints."""
    command = ["fit", *FLAGS, f"--trainer.default_root_dir={root}", *flags]
    code = f"from lit_gpt_scratch import cli\nrun = cli.main({command!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=LIMIT).execute()
    return "".join(output.get("text", "") for output in notebook.cells[0].outputs)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "of a notebook"])
def test_worker_processes_record_as_one_process(
    single: Path, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With W&B on: the process that waits for them has neither the figures nor the W&B run.

    In a notebook, Lightning itself picks a strategy that forks the kernel's process.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    two = "--trainer.devices=2"
    if strategy == "of a notebook":
        said = run_in_notebook(tmp_path, two)
    else:
        said = end(start(tmp_path, two, f"--trainer.strategy={strategy}"))
    folder = only_run(tmp_path)
    assert_equal_rows(folder, single)
    (final,) = [row["val/loss"] for row in rows(folder) if row["step"] == "50" and row["val/loss"]]
    assert f"last         {float(final):.4f} nats" in said
    assert f"best         {float(final):.4f} nats" in said
    assert "time         0 s" not in said
    (segment,) = folder.glob("wandb/offline-run-*")
    assert f"wandb sync {segment}" in said
    assert [*read_wandb(segment)] == [*range(1, 51)]


@pytest.mark.slow
def test_worker_processes_save_when_the_process_that_waits_gets_sigterm(tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.max_steps=100000"]
    job = start(tmp_path, *two, "--trainer.val_check_interval=100000", "--wandb.mode=disabled")
    deadline = time.monotonic() + LIMIT
    while not [*tmp_path.rglob("metrics.csv")] and time.monotonic() < deadline:
        time.sleep(0.1)
    job.terminate()  # this process alone
    assert "--ckpt_path" in end(job, 128 + signal.SIGTERM)
    assert 0 < state(only_run(tmp_path))["global_step"] < 100_000


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_one_line(tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--wandb.mode=disabled"]
    said = end(start(tmp_path, *two, "--trainer.limit_train_batches=0"), 2)
    (line,) = [line for line in said.splitlines() if "error:" in line]
    assert "no step was trained" in line
