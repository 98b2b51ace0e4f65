"""fit, validate, test and predict: the files they write, their output, and their errors."""

import csv
import logging
import os
import re
import shutil
import signal
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.callbacks import Callback
from tiny import TINY, Refusal

from lit_gpt_scratch import cli
from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.data.grammar import play_log_loss
from lit_gpt_scratch.generation import SamplingSettings
from lit_gpt_scratch.runs import summary
from lit_gpt_scratch.training import LitCharLM

RULE = f"\n{'-' * 80}\n"  # between texts


def texts_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the texts that `predict` has printed."""
    output = capsys.readouterr().out
    assert output.endswith("\n")
    return output.removesuffix("\n").split(RULE)


# The files and the summary of a run


def test_a_run_writes_these_files_and_no_others(run_folder: Path) -> None:
    found = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*.*")}
    expected = {".lock", "config.yaml", "about.yaml", "metrics.csv", "samples.csv", "symbols.csv"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "console.log"}
    found -= {"changes.diff"}  # only where the code has changed since the commit
    assert found == expected | {f"attention/step_{step:06}.png" for step in (1, 3, 6, 7)}
    assert run_folder.parts[-3:] == ("runs", "gpt_cpu", "version_0")


def test_metrics_have_every_name_and_end_at_the_last_step(run_folder: Path) -> None:
    with (run_folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"train/loss", "val/loss", "val/bpc", "val/perplexity", "val/gap", "lr", "grad_norm"}
    assert names | {"tokens_seen", "chars_per_sec", "mfu", "step"} <= set(rows[0])
    train = [int(row["step"]) for row in rows if row["train/loss"]]
    val = [int(row["step"]) for row in rows if row["val/loss"]]
    assert (train, val) == ([2, 4, 6, 7], [1, 3, 6, 7])
    assert all(int(float(r["tokens_seen"])) == int(r["step"]) * 16 * 16 for r in rows)
    # The default schedule warms up for 20 steps; at the last step the rate decays.
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates == pytest.approx([0.02 * r for r in (2 / 20, 4 / 20, 6 / 20, 1 / 7 / 0.6)])


def test_the_resolved_config_repeats_the_run(run_folder: Path, tmp_path: Path) -> None:
    config = run_folder / "config.yaml"
    again = cli.main(
        ["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path)]
    ).folder
    first, second = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (run_folder, again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.parent.name == "gpt_cpu"
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["corpus"] == "sample"


def test_each_new_run_gets_the_next_version_of_its_name(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--name", "mine"]
    folders = [cli.main(["fit", *TINY, *root]).folder for _ in range(2)]
    assert [f.relative_to(tmp_path / "runs/mine").name for f in folders] == [
        "version_0",
        "version_1",
    ]


def test_the_summary_has_losses_time_a_sample_the_floor_and_the_next_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fit", *TINY, "--trainer.default_root_dir", str(tmp_path)])
    output = capsys.readouterr().out
    for word in (
        "last",
        "best",
        "bits",
        "time",
        "A sample:",
        "lit-gpt-scratch predict",
        "validate",
    ):
        assert word in output
    floor, _ = play_log_loss(18001, 20000)
    assert f"floor        {floor:.4f} nats" in output


def test_a_run_without_validation_saves_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    fitted = cli.main(["fit", *TINY, *root, "--trainer.limit_val_batches", "0"])
    output = capsys.readouterr().out
    assert "not validated" in output
    assert f"validate --ckpt_path {fitted.folder / 'checkpoints/last.ckpt'}" in output
    cli.main(["validate", "--ckpt_path", str(fitted.folder / "checkpoints/last.ckpt")])


# validate, test and predict


def test_other_split_fractions_than_in_training_give_a_notice(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["validate", "--ckpt_path", str(checkpoint)])
    assert f"{checkpoint} on sample" in (output := capsys.readouterr().err)
    assert "Notice" not in output
    cli.main(["validate", "--ckpt_path", str(checkpoint), "--data.val_fraction", "0.3"])
    assert "Notice: val_fraction is 0.3, in training it was 0.1" in capsys.readouterr().err


def test_validate_computes_the_same_loss_as_fit(checkpoint: Path, run_folder: Path) -> None:
    with (run_folder / "metrics.csv").open(encoding="utf-8") as file:
        best = min(float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"])
    metrics = cli.main(["validate", "--ckpt_path", str(checkpoint)]).trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(best, abs=1e-6)


def test_test_measures_the_test_split(checkpoint: Path) -> None:
    tested = cli.main(["test", "--ckpt_path", str(checkpoint), "--data.test_fraction", "0.1"])
    assert "test/loss" in tested.trainer.callback_metrics


def test_predict_prints_the_texts_and_nothing_else(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "30"]
    cli.main([*command, "--prompt", "BEATA:", "--num_samples", "2"])
    first, second = texts_of(capsys)
    assert first.startswith("BEATA:")
    assert len(first) == len(second) == 36
    cli.main([*command, "--prompt", "BEATA:"])  # text 0 does not depend on text 1
    assert capsys.readouterr().out == first + "\n"


def test_an_empty_prompt_is_a_newline_and_a_prompt_may_exceed_the_context(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "5", "--prompt"]
    cli.main([*command, ""])
    assert capsys.readouterr().out.startswith("\n")
    long = "Kings build the bell.\n" * 4
    cli.main([*command, long])
    assert capsys.readouterr().out.startswith(long)


def test_top_k_above_the_alphabet_size_draws_from_all_with_a_notice(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "20"]
    cli.main(command)
    every = capsys.readouterr().out
    cli.main([*command, "--top_k", "5000"])
    output = capsys.readouterr()
    assert output.out == every
    assert "5000" in output.err


def test_a_greedy_text_does_not_depend_on_the_seed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "predict",
        "--ckpt_path",
        str(checkpoint),
        "--max_new_tokens",
        "20",
        "--temperature",
        "0",
    ]
    texts = []
    for seed in ("1", "2"):
        cli.main([*command, "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_predict_prints_the_texts_of_a_prompt_file_in_order(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text j of prompt i depends on the seed and on its number, i * num_samples + j, alone."""
    prompts = ["BEATA:", "Kings", "the be", "Kings and bells " * 2]
    file = tmp_path / "prompts.txt"
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "20"]
    command += ["--num_samples", "3", "--prompt_file", str(file)]
    file.write_text("\n".join(prompts), encoding="utf-8")
    done = cli.main(command)
    texts = texts_of(capsys)
    settings = SamplingSettings(max_new_tokens=20, temperature=0.8)
    alone = []
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(3)):
        ids = done.model.tokenizer.encode(prompt)[None]
        alone += done.model.generate(ids, settings, indices=[number])
        assert alone[-1].startswith(prompt)
    assert texts == alone
    assert len(set(texts)) == 12
    file.write_text(prompts[0], encoding="utf-8")  # text 0 does not depend on the other prompts
    cli.main(command)
    assert texts_of(capsys) == texts[:3]


@pytest.mark.parametrize("stop", ["e", "\n", ": "])
def test_predict_ends_each_text_before_the_stop(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "60"]
    command += ["--prompt", "BE: e\n", "--num_samples", "3"]
    cli.main(command)
    whole = texts_of(capsys)
    cli.main([*command, "--stop", stop])
    cut = [text[:6] + text[6:].split(stop)[0] for text in whole]
    assert texts_of(capsys) == cut


def test_every_sampling_filter_at_its_narrowest_gives_the_greedy_text(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--ckpt_path", str(checkpoint), "--max_new_tokens", "20"]
    texts = []
    for how in (
        ["--temperature", "0"],
        ["--top_k", "1"],
        ["--top_p", "1e-6"],
        ["--min_p", "1"],
    ):
        cli.main([*command, *how])
        texts += texts_of(capsys)
    assert texts == texts[:1] * 4
    cli.main(command)
    assert texts_of(capsys) != texts[:1]


# The corpus


def test_a_corpus_that_changed_since_training_needs_its_new_sha256(
    tmp_path: Path, refusal: Refusal
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    mine = ["--data.corpus", str(text), "--trainer.default_root_dir", str(tmp_path)]
    folder = cli.main(["fit", *TINY, *mine]).folder
    text.write_text("the mat sat on the cat\n" * 200, encoding="utf-8")
    validate = ["validate", "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    line = refusal(*validate)
    assert "--data.sha256" in line
    new = re.search(r"--data\.sha256 (\w{64})", line)
    assert new
    cli.main([*validate, "--data.sha256", new[1]])
    other = tmp_path / "other.txt"  # another corpus needs no flag besides its name
    other.write_text("a mat on a cat\n" * 200, encoding="utf-8")
    cli.main([*validate, "--data.corpus", str(other)])


def test_a_failed_download_uses_the_sample_only_with_the_fallback_flag(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", "http://127.0.0.1:9/input.txt")
    monkeypatch.setattr(corpus, "RETRIES", 0)
    tiny = [*TINY, "--data.corpus", "tiny-shakespeare"]
    line = refusal("fit", *tiny)
    assert "Put the file there by hand" in line
    assert "--data.corpus sample" in line
    root = ["--trainer.default_root_dir", str(tmp_path)]
    fitted = cli.main(["fit", *tiny, *root, "--data.fallback", "sample"])
    output = capsys.readouterr()
    assert "USING THE BUILT-IN SAMPLE INSTEAD" in output.err
    assert "THE DOWNLOAD FAILED" in output.out
    assert fitted.folder.parent.name == "gpt_cpu-sample"
    assert (
        yaml.safe_load((fitted.folder / "config.yaml").read_text(encoding="utf-8"))["data"][
            "corpus"
        ]
        == "sample"
    )


# Mistakes: one line of error, and no file is written


PROMPT_FILES = {
    "is not UTF-8 text": b"BEATA:\n\xff\n",
    "is empty": b"",
    "prompts.txt: character '8' at position 1": b"BEATA:\n\nB8\n",
}


@pytest.mark.parametrize("words", PROMPT_FILES)
def test_a_bad_prompt_file_is_one_line(
    words: str, checkpoint: Path, tmp_path: Path, refusal: Refusal
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(PROMPT_FILES[words])
    line = refusal("predict", "--ckpt_path", checkpoint, "--prompt_file", path)
    assert words in line
    if "character" in words:
        assert "line 3 of" in line


CORPORA = {
    "is not UTF-8 text (byte 0xff)": b"abc\xff" * 100,
    "is empty": b"",
    "has 9 characters": b"0123456789" * 9,
}


@pytest.mark.parametrize("words", CORPORA)
def test_a_bad_corpus_is_one_line(words: str, tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(CORPORA[words])
    assert words in refusal("fit", *TINY, "--data.corpus", path)


def test_an_unreadable_corpus_is_one_line(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "file").write_text("a file, not a folder", encoding="utf-8")
    assert "no such file" in refusal("fit", *TINY, "--data.corpus", tmp_path / "file/below")
    if os.name != "posix" or os.geteuid() == 0:
        return  # nothing is unreadable to root, and on Windows
    locked = tmp_path / "locked.txt"
    locked.write_text("secret" * 100, encoding="utf-8")
    locked.chmod(0)
    assert "Permission denied" in refusal("fit", *TINY, "--data.corpus", locked)


def test_test_without_a_test_split_is_one_line(checkpoint: Path, refusal: Refusal) -> None:
    assert "there is no test split" in refusal("test", "--ckpt_path", checkpoint)


@pytest.mark.parametrize("name", ["gpt_cpu", "other"])
def test_weights_of_another_network_are_refused_before_a_file_changes(
    name: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in the folder of the run that would resume, nor in a new folder."""
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    shutil.copytree(run_folder, folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = ["fit", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), *TINY[:4]]
    other += ["--model.net", "lit_gpt_scratch.models.Bigram", "--wandb.mode", "disabled"]
    other += ["--trainer.max_steps", "9", "--name", name]
    with pytest.raises(SystemExit):
        cli.main([*other, "--trainer.default_root_dir", str(tmp_path)])
    assert "do not fit this network" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["gpt_cpu"]


def test_a_failing_run_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a logger, whose file would show that training had started."""

    def failing_step(model: object, batch: object, batch_idx: int) -> torch.Tensor:
        if batch_idx == 5:
            raise RuntimeError("a failing step")
        return step(model, batch, batch_idx)

    step = LitCharLM.training_step
    monkeypatch.setattr(LitCharLM, "training_step", failing_step)
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    with pytest.raises(RuntimeError, match="a failing step"):
        cli.main(["fit", *TINY, *root])
    assert list(tmp_path.rglob("best.ckpt"))


def test_an_unknown_wandb_mode_is_one_line(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert "WANDB_MODE is 'onlin'" in refusal("fit", *TINY[:-2])


def test_an_unwritable_run_folder_is_one_line(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "file").write_text("a file, not a folder", encoding="utf-8")
    root = ["--trainer.default_root_dir", tmp_path / "file"]
    assert "--trainer.default_root_dir" in refusal("fit", *TINY, *root)


class Fails(Callback):
    """A user's callback with a bug."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_train_batch_end(self, *_: object) -> None:
        if self.kind == "name":
            print(undefined_name)  # type: ignore[name-defined]  # noqa: F821
        raise RuntimeError("block_allocation_table has wrong shape")


@pytest.mark.parametrize(
    ("kind", "error"), [("name", NameError), ("text", RuntimeError)], ids=["name", "text"]
)
def test_a_bug_in_a_users_callback_is_not_called_a_damaged_checkpoint(
    kind: str, error: type, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps its traceback, and the program says where the run can resume."""
    folder = tmp_path / "runs" / "gpt_cpu" / "version_0"
    shutil.copytree(run_folder, folder)
    last = folder / "checkpoints" / "last.ckpt"
    resume = ["fit", "--ckpt_path", str(last), *TINY, "--trainer.max_steps", "9"]
    callback = [f"--trainer.callbacks+={__name__}.Fails", f"--trainer.callbacks.kind={kind}"]
    with pytest.raises(error):
        cli.main([*resume, *callback, "--trainer.default_root_dir", str(tmp_path)])
    assert f"--ckpt_path {last}" in capsys.readouterr().err
    assert last.read_bytes() == (run_folder / "checkpoints" / "last.ckpt").read_bytes()


# A network at its full size


@pytest.mark.slow
def test_the_full_gpt_takes_one_step_at_its_real_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gpt.yaml says, except its batch size (too large for a laptop) and validation."""
    monkeypatch.setattr(summary, "format_summary", lambda *_: "")  # its sample takes half a minute
    config = Path(__file__).parents[2] / "configs/gpt.yaml"
    smaller = ["--data.batch_size", "1", "--trainer.max_steps", "1"]
    smaller += ["--trainer.limit_val_batches", "0"]
    corpus = ["--data.corpus", "sample", "--wandb.mode", "disabled"]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    fitted = cli.main(["fit", "--config", str(config), *smaller, *corpus, *root])
    assert sum(p.numel() for p in fitted.model.net.blocks.parameters()) == 10 * (12 * 512**2 + 1024)
    assert fitted.trainer.precision == "bf16-mixed"
    assert torch.isfinite(fitted.trainer.callback_metrics["train/loss"])


# `main` from Python: what LightningCLI takes, again and again in one process

VALUES = {
    "data": {"corpus": "sample", "sample_size": 20_000, "context": 8, "batch_size": 4},
    "model": {"net": "lit_gpt_scratch.models.Bigram"},
    "wandb": {"mode": "disabled"},
}


@pytest.mark.parametrize("form", ["dict", "subcommand", "Namespace", "list"])
def test_main_takes_what_lightning_cli_takes(form: str, tmp_path: Path) -> None:
    trainer = {"max_steps": 2, "default_root_dir": str(tmp_path)}
    values = VALUES | {"trainer": trainer}
    forms = {
        "dict": {"fit": values},
        "subcommand": {"subcommand": "fit", "fit": values},
        "Namespace": Namespace(fit=values),
        "list": [
            "fit", "--data", VALUES["data"], "--model.net", "Bigram", "--wandb.mode", "disabled",
            "--trainer.max_steps", 2, "--trainer.default_root_dir", tmp_path,
        ],
    }  # fmt: skip
    run = cli.main(forms[form])
    assert (run.trainer.global_step, run.datamodule.context) == (2, 8)
    assert type(run.model.net).__name__ == "Bigram"
    # A dict resumes like a list, with the checkpoint's values as defaults.
    resume = {"ckpt_path": str(run.folder / "checkpoints/last.ckpt"), "wandb": VALUES["wandb"]}
    resumed = cli.main({"fit": resume | {"trainer": trainer | {"max_steps": 3}}})
    assert (resumed.trainer.global_step, resumed.folder) == (3, run.folder)


@pytest.mark.parametrize("args", [{}, {"train": {}}, {"trainer": {"max_steps": 2}}, Namespace()])
def test_a_dict_without_a_command_is_refused(
    args: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(args)
    assert "the key must be one of fit, validate, test, predict" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["mean", ["mean"]])
def test_a_config_in_a_dict_may_be_a_name(config: object, tmp_path: Path) -> None:
    trainer = Namespace(max_steps=1, default_root_dir=str(tmp_path))
    values = {"data": VALUES["data"], "wandb": VALUES["wandb"], "trainer": trainer}
    run = cli.main({"fit": values | {"config": config}})
    assert type(run.model.net.attention).__name__ == "MeanAttention"
    assert run.folder.parent.name == "mean"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (5, "the value of the command is '5'. Give flags"),
        ({"config": "nope"}, "--config nope: No such file"),
        ({"config": ["mean", "gpt"]}, "config is ['mean', 'gpt']: give one file"),
        ({"config": 5}, "config is 5: give one file"),
        ({"ckpt_path": 5}, "--ckpt_path is 5: it must be text"),
        ({"plugin": ["mine"]}, "--plugin is ['mine']: it must be text"),
        ({"trainer": 5}, "the value of the command has trainer, which is '5'. Give flags"),
    ],
)
def test_a_mistake_in_a_dict_is_one_line(
    values: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main({"fit": values})
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_main_works_again_after_a_failure_and_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With W&B: each run gets its own, and none stays open."""

    def state() -> list[object]:
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "wandb", "")]
        return [*signals, *levels, [*warnings.filters], dict(os.environ)]

    values = VALUES | {"wandb": {"mode": "offline"}}
    trainer = {"max_steps": 2, "default_root_dir": str(tmp_path)}
    cli.main({"fit": values | {"trainer": trainer}})  # W&B sets variables for its own service
    before = state()

    def fail(*_: object) -> None:
        raise LookupError("a user's bug")

    with monkeypatch.context() as patch:
        patch.setattr(LitCharLM, "training_step", fail)
        with pytest.raises(LookupError):
            cli.main({"fit": values | {"trainer": trainer}})
    assert state() == before
    run = cli.main({"fit": values | {"trainer": trainer}})
    assert state() == before
    assert wandb.run is None
    ids = [
        yaml.safe_load(path.read_text(encoding="utf-8"))["wandb_id"]
        for path in tmp_path.rglob("about.yaml")
    ]
    assert len(set(ids)) == len(ids) == 2  # the failed run wrote nothing, and is removed

    # The Trainer of a finished run goes on to work, and adds nothing to the run's files.
    tables = {path: path.read_bytes() for path in run.folder.glob("*.csv")}
    (row,) = run.trainer.validate(run.model, run.datamodule, verbose=False)
    assert row["val/loss"] > 0
    after = {path: path.read_bytes() for path in run.folder.glob("*.csv")}
    del after[run.folder / "metrics.csv"], tables[run.folder / "metrics.csv"]
    assert after == tables


def test_several_files_as_a_corpus_are_named_in_the_run_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.txt").write_text(f"{name} text of few letters\n" * 40, encoding="utf-8")
    flags = ["--data.corpus=[b.txt, a.txt]", "--data.context=8", "--model.net=Bigram"]
    flags += ["--trainer.max_steps=2", "--wandb.mode=disabled"]
    folder = cli.main(["fit", *flags]).folder
    names = [str(tmp_path / "b.txt"), str(tmp_path / "a.txt")]
    assert (
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]["corpus"]
        == names
    )
    monkeypatch.chdir("/")
    last = (
        f"{folder.resolve() if folder.is_absolute() else tmp_path / folder}/checkpoints/last.ckpt"
    )
    resumed = cli.main(
        ["fit", "--ckpt_path", last, "--trainer.max_steps=4", "--wandb.mode=disabled"]
    )
    assert resumed.datamodule.hparams["corpus"] == names
