"""The flags of the commands, and a checkpoint's values as their defaults."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from laws import parse
from tiny import Refusal

from lit_gpt_scratch import cli

SMALL = ["--data.corpus=sample", "--data.sample_size=20000"]


def test_flags_override_the_checkpoint_and_the_checkpoint_overrides_defaults(
    checkpoint: Path,
) -> None:
    validated = cli.main(["validate", "--ckpt_path", str(checkpoint), "--data.val_fraction", "0.2"])
    assert validated.datamodule.context == 16
    assert validated.datamodule.hparams.val_fraction == 0.2
    assert validated.config.data.sample_size == 20000
    assert len(validated.model.net.blocks) == 1


def test_a_resumed_run_uses_explicit_flags(run_folder: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copy(run_folder / "checkpoints/last.ckpt", tmp_path)
    resumed = ["--ckpt_path", str(elsewhere)]
    resumed += ["--trainer.default_root_dir", str(tmp_path), "--wandb.mode", "disabled"]
    resumed += ["--trainer.max_steps", "9", "--trainer.log_every_n_steps", "1"]
    fitted = cli.main(["fit", *resumed, "--model.optimizer.lr", "0.5"])
    assert fitted.folder == tmp_path / "runs" / "gpt_cpu" / "version_0"
    with (fitted.folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    assert [int(row["step"]) for row in rows] == [8, 9]
    # The schedule is that of a run of nine steps.
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.5 * 2 / 5.4, 0.5 * 1 / 5.4])


def test_last_is_the_last_checkpoint_of_the_newest_run(run_folder: Path) -> None:
    root = ["--trainer.default_root_dir", str(run_folder.parents[2])]
    validated = cli.main(["validate", "--ckpt_path", "last", *root])
    assert validated.config.ckpt_path == str(run_folder / "checkpoints/last.ckpt")


def test_a_config_file_can_name_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text(f"ckpt_path: {checkpoint}\n", encoding="utf-8")
    assert cli.main(["validate", "--config", str(config)]).datamodule.context == 16


@pytest.mark.parametrize("flag", ["--config=multi_head", "-cmulti_head.yaml"])
def test_a_config_of_the_program_needs_no_path(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has its name. A file of that name in the working directory comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multi_head").mkdir()  # a folder is no config
    flags = [flag, *SMALL, "--trainer.max_steps=1", "--wandb.mode=disabled"]
    fitted = cli.main(["fit", *flags])
    assert fitted.folder.parent.name == "multi_head"
    assert type(fitted.model.net).__name__ == "AttentionLM"
    name = flag[flag.index("multi") :]
    (tmp_path / "multi_head").rmdir()
    (tmp_path / name).write_text("data: {context: 11}\n", encoding="utf-8")
    assert parse(flag).config.data.context == 11


def test_an_unknown_config_is_one_line_with_the_closest_one_or_all(refusal: Refusal) -> None:
    for name in ("multihead", "multihead.yaml", "configs/multi_head.yml", "../multi_head", "zz"):
        said = refusal("fit", "--config", name)
        assert f"--config {name}: No such file" in said
        assert ("mean, multi_head, single_head" in said) == (name == "zz")
        assert ("Did you mean multi_head?" in said) == (name != "zz")


def test_only_predict_has_the_prediction_flags_and_no_checkpoint_has_them(
    checkpoint: Path, refusal: Refusal
) -> None:
    for command in ("fit", "validate", "test"):
        assert "prompt" in refusal(command, "--ckpt_path", checkpoint, "--prompt", "KING")
    assert "prompt" not in str(torch.load(checkpoint, weights_only=True)["hyper_parameters"])


def test_a_bad_checkpoint_is_one_line(tmp_path: Path, checkpoint: Path, refusal: Refusal) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"model": {"weight": torch.ones(2)}}, foreign)
    for command in ("validate", "test", "predict"):
        assert "needs --ckpt_path" in refusal(command)
        assert "no such file" in refusal(command, "--ckpt_path", tmp_path / "none.ckpt")
        assert "damaged" in refusal(command, "--ckpt_path", broken)
        assert "was not written by" in refusal(command, "--ckpt_path", foreign)
        assert "no run in" in refusal(command, "--ckpt_path", "best")


def test_a_checkpoint_of_another_version_is_one_line(
    tmp_path: Path, checkpoint: Path, refusal: Refusal
) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    contents["hyper_parameters"]["of_tomorrow"] = 1
    torch.save(contents, tmp_path / "new.ckpt")
    assert "another version" in refusal("predict", "--ckpt_path", tmp_path / "new.ckpt")


def test_a_finished_run_and_another_number_of_devices_cannot_be_resumed(
    run_folder: Path, refusal: Refusal
) -> None:
    resume = [
        "fit",
        "--ckpt_path",
        run_folder / "checkpoints/last.ckpt",
        "--wandb.mode",
        "disabled",
    ]
    assert "is at step 7 already" in refusal(*resume, "--trainer.max_steps", 7)
    assert "batch_size is 16" in refusal(
        *resume, "--trainer.devices", 5, "--trainer.accelerator", "cpu"
    )
