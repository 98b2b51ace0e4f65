"""`predict` without Lightning prints what the complete command prints, or leaves it to that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt_scratch import cli
from lit_gpt_scratch.checkpoints.network import TrainedNetwork, build, load_network
from lit_gpt_scratch.cli import quick_predict
from lit_gpt_scratch.cli.program import find_command
from lit_gpt_scratch.errors import exit_on_input_error

SHORT = ["--max_new_tokens", "12"]
NETWORKS = {
    "bigram": ["--config", "bigram"],
    "mean": ["--config", "mean"],
    "multi_head": ["--config", "multi_head"],
    "transformer": ["--config", "transformer"],
    "modern": ["--model.net.layers", "1", "--model.net.width", "16"],
    "ensemble": [
        *["--config", "gpt_cpu_long", "--data.batch_size", "6"],
        *["--model.net.init_args.net.init_args.layers", "1"],
        *["--model.net.init_args.net.init_args.width", "16"],
    ],
}


def printed(capsys: pytest.CaptureFixture[str], args: list[str], quick: bool) -> tuple[str, str]:
    capsys.readouterr()
    if quick:
        run = quick_predict.prepare(args[1:])
        assert run is not None
        assert capsys.readouterr() == ("", "")
        run()
    else:
        cli.main(args)
    said = capsys.readouterr()
    return said.out, re.sub(r"\d+ s ago", "", said.err)  # the two ask at different times


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--prompt", "KING"],
        ["--prompt", "null"],
        ["--prompt="],
        ["--prompt", "no"],
        ["--prompt", "a: no"],
        ["--prompt", "e", "--num_samples", "3", "--stop", "e", "--temperature", "1.5"],
        ["--top_k", "3", "--top_p", "0.9", "--min_p", "0.1", "--seed", "5"],
        ["--top_k", "1000"],  # a notice
        ["--seed_everything", "5", "--temperature", "0"],
        ["--prompt_file", "prompts.txt", "--num_samples", "2"],
    ],
)
def test_it_prints_what_the_complete_command_prints(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a\nI am\n\nb\n", encoding="utf-8")
    args = ["predict", "--ckpt_path", str(checkpoint), *SHORT, *flags]
    quick = printed(capsys, args, quick=True)
    assert quick == printed(capsys, args, quick=False)
    assert len(quick[0]) > 12


@pytest.mark.parametrize("name", NETWORKS)
def test_it_builds_the_network_of_every_kind_of_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = ["--data.corpus", "sample", "--data.sample_size", "20000", "--data.context", "8"]
    steps = ["--trainer.max_steps", "2", "--wandb.mode", "disabled"]
    cli.main(["fit", *NETWORKS[name], *sample, *steps])
    args = ["predict", "--ckpt_path", "last", *SHORT]
    assert printed(capsys, args, quick=True) == printed(capsys, args, quick=False)


def test_it_reads_an_export(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "export")
    cli.main(["export", "--ckpt_path", str(checkpoint), "--output", folder])
    args = ["predict", "--ckpt_path", folder, *SHORT]
    assert printed(capsys, args, quick=True) == printed(capsys, args, quick=False)


@pytest.mark.parametrize(
    "flags",
    [
        ["--ckpt_path"],
        ["--ckpt_path", "missing.ckpt"],
        ["--ckpt_path", "null"],
        ["--ckpt_path", "best"],  # there is no run
        ["--num_samples", "2"],
        ["--ckpt_path", "OWN", "--num_samples", "0"],
        ["--ckpt_path", "OWN", "--num_samples", "two"],
        ["--ckpt_path", "OWN", "--temperature", "-1"],
        ["--ckpt_path", "OWN", "--temperature", "1e3"],
        ["--ckpt_path", "OWN", "--top_k", "null"],
        ["--ckpt_path", "OWN", "--prompt", "ä"],
        ["--ckpt_path", "OWN", "--prompt_file", "-"],
        ["--ckpt_path", "OWN", "--prompt_file", "/dev/stdin"],
        ["--ckpt_path", "OWN", "--plugin", "mine"],
        ["--ckpt_path", "OWN", "--config", "gpt_cpu"],
        ["--ckpt_path", "OWN", "--trainer.precision", "bf16-mixed"],
        ["--ckpt_path", "OWN", "--promt", "a"],
        ["--ckpt_path", "OWN", "--prom", "a"],
        ["--ckpt_path", "OWN", "word"],
    ],
)
def test_it_leaves_mistakes_and_other_flags_to_the_complete_command(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [str(checkpoint) if flag == "OWN" else flag for flag in flags]
    assert quick_predict.prepare(own) is None
    assert capsys.readouterr() == ("", "")


def test_the_program_uses_it_without_importing_lightning(checkpoint: Path) -> None:
    script = (
        "import sys; from lit_gpt_scratch.cli.program import find_command; "
        f"args = ['predict', '--ckpt_path', {str(checkpoint)!r}, '--max_new_tokens', '5']; "
        "find_command(args, quick=True)(); "
        "slow = {'lightning', 'torchmetrics', 'wandb', 'matplotlib', 'torch._dynamo'}; "
        "print(*slow & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 5
    assert done.stderr == "\n"


def test_a_diverged_model_ends_with_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are not finite, which is found only while a text is written."""

    def diverged(path: Path) -> TrainedNetwork:
        loaded = load_network(path)
        next(loaded.net.parameters()).data.fill_(float("inf"))
        return loaded

    monkeypatch.setattr(quick_predict, "load_network", diverged)
    run = find_command(["predict", "--ckpt_path", str(checkpoint), *SHORT], quick=True)
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "logits are not all finite" in line


def test_it_builds_networks_only() -> None:
    with pytest.raises(ValueError, match="PredictSettings is no network"):
        build({"class_path": "lit_gpt_scratch.cli.predict.PredictSettings"})


def test_a_lack_of_memory_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(SystemExit),
        exit_on_input_error("program"),
        quick_predict.explain_lack_of_memory(),
    ):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert "for predict, --max_new_tokens" in capsys.readouterr().err
