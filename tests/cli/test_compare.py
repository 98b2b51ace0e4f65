"""`compare`: real runs side by side, what is reused, resumed and refused, and the search."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from laws import CONFIGS

from lit_gpt_scratch.cli import compare as command
from lit_gpt_scratch.cli import jobs, main, search
from lit_gpt_scratch.cli.jobs import Job
from lit_gpt_scratch.cli.recipes import plan
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs.folder import (
    lock_run_folder,
    read_mapping,
    read_rows,
    write_rows,
    write_yaml_files,
)
from lit_gpt_scratch.runs.listing import find_state
from lit_gpt_scratch.runs.provenance import code_sha256

TINY = [
    "--data.corpus=sample", "--data.sample_size=20000", "--data.context=8", "--data.batch_size=4",
    "--wandb.mode=disabled", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
]  # fmt: skip
FOUR_STEPS = [*TINY, "--trainer.max_steps=4", "--trainer.val_check_interval=2"]
LR = "model.optimizer.lr"


def versions(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "runs").as_posix() for path in folder.glob("runs/*/*"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder and the result of a comparison of two configs."""
    folder = tmp_path_factory.mktemp("compare")
    args = ["bigram", "mean", "--seeds", "1", "--folder", str(folder), "--name", "c"]
    return folder, main(["compare", *args, *FOUR_STEPS])


def test_each_variant_has_the_losses_of_its_run(compared: tuple[Path, Any]) -> None:
    folder, result = compared
    for label, (run,) in result.outcomes.items():
        rows = [row for row in read_rows(run.folder / "metrics.csv")[1] if row["val/loss"]]
        assert (run.last, int(rows[-1]["step"])) == (float(rows[-1]["val/loss"]), 4)
        assert run.best == min(float(row["val/loss"]) for row in rows)
        assert run.train == pytest.approx(run.last - float(rows[-1]["val/gap"]))
        assert run.folder == folder / "runs" / label / "version_0"
        assert run.parameters == read_mapping(run.folder / "about.yaml")["parameters"]
    assert "bigram" in (folder / "c.md").read_text(encoding="utf-8")
    assert [v["label"] for v in json.loads((folder / "c.json").read_bytes())["variants"]] == [
        "bigram",
        "mean",
    ]


def test_finished_runs_are_not_repeated(compared: tuple[Path, Any]) -> None:
    folder, result = compared
    before = versions(folder)
    variants = {label: ["--config", label, *FOUR_STEPS] for label in ("mean", "bigram")}
    again = command.compare(variants, 1, folder)
    assert versions(folder) == before
    assert again.outcomes == result.outcomes


@pytest.mark.parametrize(
    "change", [{"code_sha256": "other"}, {"model.optimizer.lr": "7"}, {"seed_everything": "7"}]
)
def test_a_run_counts_only_with_equal_settings_seed_and_code(
    change: dict[str, str], compared: tuple[Path, Any]
) -> None:
    folder, _ = compared
    recipe = plan(["--config", "bigram", *FOUR_STEPS])

    def job(**change: str) -> Job:
        changed = recipe._replace(settings={**recipe.settings, **change}, seeds=())
        return Job("bigram", 1337, [], changed, folder)

    assert job().is_finished
    assert job(**{"wandb.mode": "online", "trainer.enable_progress_bar": "False"}).is_finished
    assert job(**change).folder is None


@pytest.mark.parametrize("is_validated", [True, False])
def test_a_run_that_was_killed_after_its_last_step_counts_only_with_a_validation(
    is_validated: bool, compared: tuple[Path, Any], tmp_path: Path
) -> None:
    shutil.copytree(compared[0] / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "bigram" / "version_0"
    about = read_mapping(run / "about.yaml")
    write_yaml_files(run, about={k: v for k, v in about.items() if k != "finished"})
    if not is_validated:
        columns, rows = read_rows(run / "metrics.csv")
        write_rows(run / "metrics.csv", columns, [row | {"val/loss": ""} for row in rows])
    job = Job("bigram", 1337, [], plan(["--config", "bigram", *FOUR_STEPS]), tmp_path)
    assert (job.folder, job.is_finished) == (run, is_validated)


def test_a_finished_run_counts_also_beside_a_newer_one(
    compared: tuple[Path, Any], tmp_path: Path
) -> None:
    for version in ("version_0", "version_1"):
        shutil.copytree(compared[0] / "runs/bigram/version_0", tmp_path / "runs/bigram" / version)
    (tmp_path / "runs/bigram/version_1/about.yaml").unlink()
    (tmp_path / "runs/bigram/version_1/metrics.csv").unlink()
    job = Job("bigram", 1337, [], plan(["--config", "bigram", *FOUR_STEPS]), tmp_path)
    assert (job.folder, job.is_finished) == (tmp_path / "runs/bigram/version_0", True)


def test_the_name_of_a_table_tells_configs_apart() -> None:
    names = [command.make_name([config], ["lr=1", "lr=2"]) for config in ("bigram", "mean")]
    assert names == ["bigram-lr=1_vs_lr=2", "mean-lr=1_vs_lr=2"]
    long = [command.make_name(["mean"], [f"{i:090}", "x"]) for i in range(2)]
    assert max(map(len, long)) <= 80
    assert len(set(long)) == 2


def test_code_hash_changes_with_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "plugin_for_hash.py"
    source.write_text("x = 1\n", encoding="utf-8")
    __import__("plugin_for_hash")
    first = code_sha256("plugin_for_hash")
    assert first != code_sha256(None)
    source.write_text("x = 2\n", encoding="utf-8")
    importlib.reload(sys.modules["plugin_for_hash"])
    assert code_sha256("plugin_for_hash") != first


@pytest.mark.parametrize(("fixed", "expected"), [([], "5"), (["--data.seed=1337"], "1337")])
def test_the_data_seed_follows_the_seed_unless_a_config_sets_it(
    fixed: list[str], expected: str
) -> None:
    """A run's own config.yaml sets data.seed to the seed. It stays there, too."""
    flags = ["--config", "bigram", *FOUR_STEPS, *fixed]
    planned = plan(flags).with_seed(5)
    assert (planned["seed_everything"], planned["data.seed"]) == ("5", expected)
    assert planned == plan([*flags, "--seed_everything=5"]).settings


@pytest.mark.parametrize(
    ("configs", "vary", "labels"),
    [
        (["bigram", "mean"], [], ["bigram", "mean"]),
        (["gpt"], [f"{LR}=0.01,0.02"], ["lr=0.01", "lr=0.02"]),
        (["gpt"], ["model.net.attention=MeanAttention,my.Own"], ["MeanAttention", "Own"]),
        (["a.yaml", "b.yaml"], [f"{LR}=1,2"], ["a-lr=1", "a-lr=2", "b-lr=1", "b-lr=2"]),
        (["gpt"], [f"{LR}=1", "x.y=[1,2],3"], ["lr=1-y=_1_2_", "lr=1-y=3"]),
        (["gpt"], ["x.y=a.Own,b.Own"], ["x.y=a.Own", "x.y=b.Own"]),
        (["a/x.yaml", "b/x.yaml"], [], ["a_x.yaml", "b_x.yaml"]),
    ],
)  # fmt: skip
def test_variants_are_a_grid_with_readable_names(
    configs: list[str], vary: list[str], labels: list[str]
) -> None:
    variants = command.make_variants(configs, command.parse_varied(vary))
    assert [*variants] == labels
    assert len({tuple(flags) for flags in variants.values()}) == len(labels)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bigram"], "there is one variant"),
        (["bigram", "bigram"], "two variants are equal"),
        (["bigram", "--vary", f"{LR}=0.1,0.10"], "lr=0.1 and lr=0.10 have the same settings"),
        (["bigram", "--vary", f"{LR}=1", "--vary", f"{LR}=2"], "twice"),
        (["bigram", "--vary", "seed_everything=1,2"], "compare sets --seed_everything itself"),
        (["bigram", "--vary", f"{LR}=0.1..1"], "is a range: give the number of trials"),
        (["bigram", "mean", "--seeds", "two"], "'two' is no whole number"),
        (["bigram", "mean", "--seed_everything", "5"], "compare sets --seed_everything itself"),
        (["bigram", "mean", "--seeds", "0"], "seeds is 0"),
        (["bigram", "--vary", LR], "--vary is 'model.optimizer.lr'"),
        (["bigram", "--search", "3"], "--search needs one config and at least one --vary"),
        (["bigram", "mean", "--model.optimizer.lrr", "1"], "did you mean model.optimizer.lr?"),
        (["bigram", "bigrm"], "--config bigrm"),
        ([], "give two configs first"),
        (["--seeds", "1", "bigram", "mean"], "give two configs first"),
        (["bigram", "--seeds", "1", "mean"], "mean belongs to no flag: give all configs first"),
        (["bigram", "--trainer.max_steps", "4", "mean"], "mean belongs to no flag"),
        (["bigram", "mean", "--at_once", "0"], "at_once is 0"),
        (["bigram", "--vary", f"{LR}=1..2", "--search", "-1"], "search is -1"),
        (["bigram", "--vary", f"{LR}=1..2", "--search", "2", "--seeds", "2"], "takes one seed"),
        (["bigram", "mean", "--name", "a/b"], "--name is 'a/b'"),
        (["bigram", "mean", "--trainer.limit_val_batches", "0"], "limit_val_batches is 0"),
        (["bigram", "mean", "--trainer.logger", "false"], "logger is False"),
    ],
)
def test_a_mistake_is_one_line_and_trains_nothing(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["compare", *args, *TINY, "--folder", str(tmp_path)])
    line = capsys.readouterr().err.strip()
    assert exit_code.value.code == 2
    assert words in line
    assert "\n" not in line
    assert not any(tmp_path.iterdir())


def test_the_recipe_trap_of_a_network_alone_is_named(tmp_path: Path) -> None:
    """A config with another network only gets the defaults, not the rung's optimizer."""
    rung = next(path for path in CONFIGS if path.stem == "transformer")
    net = yaml.safe_load(rung.read_text(encoding="utf-8"))["model"]["net"]
    net["init_args"]["attention"] = "MultiHeadAttention"
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"data": {"context": 8}, "model": {"net": net}}), "utf-8")
    settings = {path.stem: plan(["--config", str(path), *TINY]).settings for path in (rung, mine)}
    (warning,) = command.find_unequal(settings, [])
    assert warning.startswith("mine also differs from the first in ")
    assert "model.optimizer (" in warning
    assert "model.schedule (" in warning
    assert "model.net" not in warning


def fake_job(folder: Path, code: str) -> Job:
    """Return a job whose process runs Python code."""
    job = Job("bigram", 1337, [], plan(["--config", "bigram", *FOUR_STEPS]), folder)
    job.process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=job.output, stderr=subprocess.STDOUT
    )
    return job


def test_a_bug_ends_the_comparison_and_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = fake_job(tmp_path, "1 / 0")
    assert job.process
    job.process.wait()
    with pytest.raises(InputError, match="bigram, seed 1337 has failed with exit code 1: Zero"):
        job.has_ended()
    assert "Traceback" in capsys.readouterr().err


def test_a_run_that_fails_in_one_line_has_ended(tmp_path: Path) -> None:
    job = fake_job(tmp_path, "raise SystemExit('lit-gpt-scratch: error: no disk.')")
    assert job.process
    job.process.wait()
    assert job.has_ended()
    assert job.failure == "seed 1337 has failed with exit code 1: no disk."


@pytest.mark.slow
def test_a_variant_that_diverges_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its other seeds are not trained; without the first variant, nothing is compared."""
    folder = ["--folder", str(tmp_path), *FOUR_STEPS]
    for values in ("0.01,0.02,1e38", "1e38,0.01"):
        with pytest.raises(SystemExit) as end:
            main(["compare", "bigram", "--vary", f"{LR}={values}", "--seeds", "2", *folder])
        out, err = capsys.readouterr()
        if values.startswith("1e38"):
            assert end.value.code == 2
            assert "nothing can be compared. lr=1e38: seed 1337 has failed" in err
        else:
            assert end.value.code == 1
            assert "Warning: left out: lr=1e38: seed 1337 has failed" in out
            assert "lr=0.02 is " in out
            assert len([*tmp_path.glob("runs/lr=1e38/*")]) < 2


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.needs("unix", "signals")
def test_a_stopped_comparison_saves_its_runs_and_continues(tmp_path: Path) -> None:
    flags = [*TINY, "--trainer.max_steps=1000", "--trainer.val_check_interval=1000"]
    args = ["compare", "bigram", "--vary", f"{LR}=0.01,0.02", "--seeds", "1", *flags]
    args += ["--folder", str(tmp_path)]
    start = [sys.executable, "-m", "lit_gpt_scratch", *args]
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(list(tmp_path.glob("runs/*/version_0/metrics.csv"))) == 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "The same command continues them." in errors
    for name in ("lr=0.01", "lr=0.02"):
        folder = tmp_path / "runs" / name / "version_0"
        lock_run_folder(folder).release()  # no process trains it any more
        assert (folder / "checkpoints" / "last.ckpt").exists()
    result = main(args)
    assert sorted(path.name for path in tmp_path.glob("runs/*/*")) == ["version_0"] * 2
    for (run,) in result.outcomes.values():
        steps = [int(row["step"]) for row in read_rows(run.folder / "metrics.csv")[1]]
        assert steps == sorted(steps)
        assert set(steps) == set(range(1, 1001)), "a row for each step"


@pytest.mark.slow
@pytest.mark.needs("unix", "signals")
def test_runs_save_and_end_if_the_comparison_is_killed(tmp_path: Path) -> None:
    flags = [*TINY, "--trainer.max_steps=100000", "--trainer.val_check_interval=100000"]
    args = ["compare", "bigram", "mean", "--seeds", "1", "--folder", str(tmp_path), *flags]
    with subprocess.Popen([sys.executable, "-m", "lit_gpt_scratch", *args]) as process:
        wait_until(lambda: len(list(tmp_path.glob("runs/*/version_0/metrics.csv"))) == 2)
        process.kill()
    wait_until(lambda: len(list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))) == 2)
    for folder in tmp_path.glob("runs/*/version_0"):
        wait_until(lambda folder=folder: find_state(folder, False) == "stopped")


def test_on_a_terminal_the_table_is_redrawn_and_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    recipe = plan(["--config", "bigram", *FOUR_STEPS])
    labels = [f"variant number {i}" for i in range(30)]
    many = [Job(label, seed, [], recipe, tmp_path) for label in labels for seed in range(3)]
    few = jobs.ProgressTable(many[:6], 6).lines(22)
    assert [line.split() for line in few] == [
        ["seed", "0", "1", "2"],
        ["variant", "number", "0", *["waiting"] * 3],
        ["variant", "number", "1", *["waiting"] * 3],
        ["0", "of", "6", "runs", "are", "finished"],
    ]
    table = jobs.ProgressTable(many, 90)
    assert len(table.lines(22)) <= 22
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        for job in many:
            job.process = process
    assert len(table.lines(22)) <= 22


def trial_of(study: Any, folder: Path, losses: list[float]) -> search.Trial:
    """Return a trial whose run has logged these losses and is still training."""
    folder.mkdir(parents=True)
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
    (folder / "metrics.csv").write_text(f"step,val/loss\n{rows}", encoding="utf-8")
    recipe = plan(["--config", "bigram", *FOUR_STEPS])
    trial = search.Trial(study, study.ask(), "bigram", 1337, [], recipe, folder)
    trial.folder = folder
    trial.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return trial


@pytest.mark.parametrize(("loss", "is_pruned"), [(1.0, False), (9.0, True)])
def test_a_trial_is_stopped_early_only_if_it_is_worse_than_the_median(
    loss: float, is_pruned: bool, tmp_path: Path
) -> None:
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(1))
    first = study.ask()
    for step in range(1, 4):
        first.report(2.0, step)
    study.tell(first, 2.0)
    trial = trial_of(study, tmp_path / "run", [loss] * 3)
    assert trial.process
    try:
        assert not trial.has_ended()
        assert trial.is_pruned == is_pruned
        if is_pruned:
            trial.process.wait()
            assert trial.has_ended()
            assert study.trials[-1].state.name == "PRUNED"
    finally:
        trial.process.kill()


@pytest.mark.slow
def test_a_search_leaves_out_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is refused, and one that diverges. It ends if nothing else is there."""
    flags = ["--search", "8", "--folder", str(tmp_path), "--at_once", "2", *FOUR_STEPS]
    main(["compare", "bigram", "--vary", f"{LR}=0.01,0.02,0.03,-1,1e38", *flags])
    out = capsys.readouterr().out
    assert "| 0.0" in out
    assert "1e38" not in out
    assert " 0 failed" not in out
    with pytest.raises(SystemExit):
        main(["compare", "bigram", "--vary", f"{LR}=-1,-2", *flags])
    err = capsys.readouterr().err
    assert "all trials have failed; the last one: " in err
    assert "--model.optimizer.lr is -" in err


def test_values_that_are_being_tried_are_not_trained_twice(tmp_path: Path) -> None:
    study = optuna.create_study()
    recipe = plan(["--config", "bigram", *FOUR_STEPS])
    trial = search.Trial(study, study.ask(), "bigram", 1337, [], recipe, tmp_path)
    trial.trials.append(study.ask())
    trial.failure = "no disk"
    trial.tell()
    assert search.failed(study) == ["no disk"] * 2
    assert search.done(study) == []


def test_each_start_of_a_search_draws_other_values(tmp_path: Path) -> None:
    drawn = []
    for _ in range(3):
        study = search.open_study(["bigram"], {LR: "0.1..1"}, tmp_path, 100)
        drawn.append(search.suggest(trial := study.ask(), LR, "0.1..1"))
        study.tell(trial, 1.0)
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.0), (0.2, 0.1)])
def test_a_search_reads_neither_validation_nor_test_text(val: float, test: float) -> None:
    fractions = [f"--data.val_fraction={val}", f"--data.test_fraction={test}"]
    base = plan(["--config", "bigram", *FOUR_STEPS, *fractions])
    assert search.held_out(base) == [
        "--data.val_fraction=0.1",
        f"--data.test_fraction={val + test:.1f}",
    ]


@pytest.mark.slow
def test_a_search_finds_the_best_of_its_trials_and_repeats_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    varied = ["--vary", f"{LR}=0.001,0.1", "--search", "2", "--folder", str(tmp_path)]
    tables = []
    for _ in range(2):
        main(["compare", "bigram", *varied, *FOUR_STEPS])
        tables.append(capsys.readouterr().out)
        before = versions(tmp_path)
    assert versions(tmp_path) == before
    assert tables[0] == tables[1]
    losses = [float(line.split()[1]) for line in tables[0].splitlines() if line.startswith("| 4.")]
    assert losses == sorted(losses)
    (config,) = {
        read_mapping(path)["data"]["test_fraction"]
        for path in tmp_path.glob("runs/*/*/config.yaml")
    }
    assert config == 0.1, "the validation split is kept out of the search"


@pytest.mark.parametrize("text", ["a..b", "1..", "3..1", "0.1..nan", "1..inf"])
def test_a_range_without_numbers_is_refused(text: str) -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(InputError, match=r"as in 0\.001\.\.0\.1"):
        search.suggest(trial, LR, text)


def test_the_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for runs, at_once, expected in ((20, None, (8, "1")), (2, None, (2, "4")), (9, 3, (3, "2"))):
        found = command.environments(runs, at_once, False)
        assert (len(found), found[0]["OMP_NUM_THREADS"]) == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert command.environments(2, None, False)[0]["OMP_NUM_THREADS"] == "5"


def test_each_gpu_that_the_user_allows_has_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    found = command.environments(9, 3, True)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["4", "5", "4"]
