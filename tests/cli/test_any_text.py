"""Any Unicode text can be trained on, sampled, exported, inspected, plotted and reported."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pytest
import torch
from chromium import CHROMIUM, Chromium, Page
from laws import CONFIGS, parse, small, train_small
from matplotlib import pyplot as plt
from torch.utils._python_dispatch import TorchDispatchMode
from unicode_texts import CJK, TEXTS

from lit_gpt_scratch import cli, inspection
from lit_gpt_scratch.__main__ import run
from lit_gpt_scratch.cli import export_command as export
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.inspection import plots
from lit_gpt_scratch.runs import report
from lit_gpt_scratch.runs.callbacks import SampleRecorder, printable_lines
from lit_gpt_scratch.runs.folder import read_rows
from lit_gpt_scratch.runs.summary import large_alphabet_notice
from lit_gpt_scratch.training.module import LitCharLM

LARGE = "ten thousand characters"
SMALL = ["--model.net.layers=1", "--model.net.width=16", "--trainer.val_check_interval=2"]


class Trained(NamedTuple):
    """A run of four steps with a W&B record, and its corpus."""

    text: str
    corpus: Path
    run: CharCLI

    @property
    def last(self) -> Path:
        return self.run.folder / "checkpoints" / "last.ckpt"

    @property
    def validated(self) -> str:
        part = self.run.datamodule.splits.val
        return self.text[part.start : part.stop]


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    found = {}
    for name, text in TEXTS.items():
        folder = tmp_path_factory.mktemp("any")
        corpus = folder / "text.txt"
        corpus.write_bytes(text.encode())
        args = [f"--data.corpus={corpus}", f"--name={name}", "--wandb.mode=offline", *SMALL]
        found[name] = Trained(text, corpus, train_small(folder, *args))
    return found


@pytest.fixture(params=TEXTS)
def trained(request: pytest.FixtureRequest, all_trained: dict[str, Trained]) -> Trained:
    return all_trained[request.param]


def output_of(monkeypatch: pytest.MonkeyPatch, encoding: str, *args: str) -> str:
    """Run the program; return its output in an encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["lit-gpt-scratch", *args])
    handler = signal.getsignal(signal.SIGINT)
    run()
    signal.signal(signal.SIGINT, handler)
    stream.flush()
    return str(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]


def test_each_text_has_the_property_in_its_name() -> None:
    """Otherwise the tests below would test less than they say."""
    assert len(set(TEXTS[LARGE])) == len(set(CJK)) == 10_000
    assert max(TEXTS[LARGE]) > "\uffff"
    assert all(sign in TEXTS["emoji"] for sign in "\u200d\ufe0f🏽")
    assert {"R", "AL", "NSM"} <= {unicodedata.bidirectional(c) for c in TEXTS["right to left"]}
    assert all(end in TEXTS["ends of lines"] for end in ("\r\n", "\r", "\u2028", "\x85"))
    assert {"\0", "\x1b", "\ufeff"} < {*TEXTS["controls"]}
    assert {len(c.encode()) for c in TEXTS["every width"]} == {1, 2, 3, 4}
    assert [len({*TEXTS[name]}) for name in ("one letter", "two letters")] == [1, 2]


# Through the program


def test_decoding_the_tokens_gives_the_corpus(trained: Trained) -> None:
    data = trained.run.datamodule
    assert data.tokenizer.decode(data.tokens) == trained.text
    assert data.alphabet == "".join(sorted({*trained.text}))


def test_each_validation_writes_tables_that_read_back_unchanged(trained: Trained) -> None:
    """W&B has the same rows."""
    alphabet, folder = {*trained.text}, trained.run.folder
    _, samples = read_rows(folder / "samples.csv")
    assert [row["step"] for row in samples] == ["2", "2", "4", "4"]
    for row in samples:
        assert row["text"].startswith(row["prompt"])
        assert len(row["text"]) == len(row["prompt"]) + SampleRecorder.settings.max_new_tokens
        assert {*row["text"]} <= alphabet
    _, symbols = read_rows(folder / "symbols.csv")
    for step in ("2", "4"):
        found = {row["symbol"]: int(row["count"]) for row in symbols if row["step"] == step}
        assert found == Counter(trained.validated[1:])
    for name, rows in (("samples", samples), ("symbols", symbols)):
        pieces = folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.json")
        logged = [row for piece in pieces for row in json.loads(piece.read_bytes())["data"]]
        assert sorted([*map(str, row)] for row in logged) == sorted([*r.values()] for r in rows)


def test_a_run_resumes_and_validates(trained: Trained, tmp_path: Path) -> None:
    again = [f"--data.corpus={trained.corpus}", *SMALL, f"--ckpt_path={trained.last}"]
    run = train_small(tmp_path, *again, "--trainer.max_steps=6", "--name=longer")
    loss = float(run.trainer.callback_metrics["val/loss"])
    assert run.trainer.global_step == 6
    assert 0 <= loss <= math.log(len({*trained.text})) + 0.1
    last = run.folder / "checkpoints" / "last.ckpt"
    measured = cli.main(["validate", f"--ckpt_path={last}", "--trainer.logger=false"])
    assert float(measured.trainer.callback_metrics["val/loss"]) == pytest.approx(loss, abs=1e-6)


def test_an_export_generates_the_same_text_as_its_checkpoint(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export.export(trained.last, tmp_path / "exported")
    prompt = next(word for word in trained.text.split("\n") if word)[:5]
    args = ["--prompt", prompt, "--max_new_tokens", "50", "--num_samples", "2"]
    generated = [
        output_of(monkeypatch, "utf-8", "predict", f"--ckpt_path={path}", *args)
        for path in (trained.last, tmp_path / "exported")
    ]
    assert generated[0] == generated[1]
    assert generated[0].startswith(prompt)
    assert generated[0].count("-" * 80) == 1
    assert {*generated[0]} <= {*trained.text, "\n", "-"}


def test_an_output_without_a_character_shows_its_code_point(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["predict", f"--ckpt_path={trained.last}", "--max_new_tokens=50"]
    wide, narrow = (output_of(monkeypatch, name, *args) for name in ("utf-8", "ascii"))
    assert narrow == wide.encode("ascii", "backslashreplace").decode()


def test_fit_works_on_an_ascii_terminal(tmp_path: Path) -> None:
    """The summary and the progress bar are printed as elsewhere."""
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(TEXTS["right to left"].encode())
    done = subprocess.run(
        [
            sys.executable, "-m", "lit_gpt_scratch", "fit", f"--data.corpus={corpus}", *SMALL,
            "--data.context=8", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=true",
        ],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.isascii()
    assert "  | " in done.stdout
    assert "\\u05" in done.stdout


def test_a_prompt_and_a_corpus_of_unknown_characters_are_one_line_each(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = next(c for c in "☂é" if c not in trained.text)
    corpus = tmp_path / "other.txt"
    corpus.write_text(trained.text + unknown, encoding="utf-8", newline="")
    for args in (["predict", "--prompt", unknown], ["validate", f"--data.corpus={corpus}"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*args, f"--ckpt_path={trained.last}"])
        assert stop.value.code == 2
        output = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(output) == 1
        assert f"{unknown!r} at position" in output[0]
        assert f"is not in the alphabet of {len({*trained.text}):,}".replace(",", "") in output[0]


def test_characters_may_occur_only_in_the_validation_split(tmp_path: Path) -> None:
    """The alphabet is that of the whole corpus; such characters have a loss of about log V."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("ab" * 900 + "".join(CJK[:200]), encoding="utf-8", newline="")
    run = train_small(tmp_path, f"--data.corpus={corpus}", *SMALL)
    assert len(run.datamodule.alphabet) == 202
    assert float(run.trainer.callback_metrics["val/loss"]) > math.log(202) - 1


# Inspected


def all_plots(model: LitCharLM, text: str) -> dict[str, Any]:
    """Return every plot of the notebooks for a text that is as long as the context."""
    other = next((c for c in model.tokenizer.alphabet if c != text[-1]), None)
    costs = inspection.head_costs(model, text), inspection.layer_costs(model, text)
    heads = inspection.attention(model, text)
    changed = text[:-1] + (other or "")
    alphabet = model.tokenizer.alphabet
    return {
        "attention": plots.plot_attention(heads[0].weights[0], text),
        "heads": plots.plot_heads(heads, text),
        "next": plots.plot_next_characters(inspection.next_characters(model, text), text, alphabet),
        "losses": plots.plot_token_losses(inspection.token_losses(model, text * 4), text * 4),
        "positions": plots.plot_position_costs(inspection.position_costs(model, text), text),
        "lens": plots.plot_logit_lens(inspection.logit_lens(model, text), text, alphabet),
        "costs": plots.plot_costs(*costs),
        "similarity": plots.plot_similarity(
            inspection.similarity(inspection.embeddings(model)), alphabet
        ),
        "attribution": plots.plot_attribution(
            inspection.logit_attribution(model, text), alphabet, text[0], other
        ),
        **(plots_of_two_texts(model, text, changed) if other else {}),
    }


def plots_of_two_texts(model: LitCharLM, clean: str, corrupted: str) -> dict[str, Any]:
    probabilities = (inspection.next_characters(model, text)[-1] for text in (clean, corrupted))
    change = torch.sub(*probabilities)
    alphabet = model.tokenizer.alphabet
    answers = alphabet[change.argmax()], alphabet[change.argmin()]
    patching = inspection.activation_patching(model, clean, corrupted, *answers)
    trace = inspection.trace(model, clean, corrupted)
    return {
        "trace": plots.plot_trace(trace, clean, corrupted),
        "patching": plots.plot_patching(patching, clean, corrupted),
    }


@pytest.mark.parametrize(
    "trained", [LARGE, "right to left", "ends of lines", "controls", "one letter"], indirect=True
)
def test_every_plot_of_a_text_draws_without_a_warning(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No glyph is missing, and no figure is larger than 20 inches."""
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    monkeypatch.setitem(mpl.rcParams, "figure.dpi", 40)
    model = inspection.load(trained.last)
    for start in range(0, 64, 8):
        inspection.draw_heads(
            inspection.attention(model, trained.text[start : start + 8]), trained.text[:8]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, drawn in all_plots(model, trained.text[:8]).items():
            figure = getattr(drawn, "figure", drawn)
            assert max(figure.get_size_inches()) < 20, name
            figure.canvas.draw()
    plt.close("all")


def test_visible_keeps_the_length_of_a_text_and_is_printable(trained: Trained) -> None:
    shown = inspection.visible(trained.text)
    assert len(shown) == len(trained.text)
    assert shown.isprintable()
    assert inspection.visible("a\r\n\t b\x1b") == "a↵⏎⇥␣b�"


def test_a_printed_sample_has_no_control_characters(trained: Trained) -> None:
    """Such as escape, bell or carriage return."""
    lines = printable_lines(trained.text)
    assert all(unicodedata.category(c) != "Cc" for line in lines for c in line if c != "\t")
    assert printable_lines("a\tb\x1b[2J\r\n c") == ["  | a\tb�[2J", "  |  c"]


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the number of elements of the largest tensor."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        sizes = [part.numel() for part in made if isinstance(part, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_the_losses_of_a_longer_text_need_no_larger_tensor() -> None:
    model = small(CONFIGS[0])
    largest = []
    for count in (8192, 40_000):
        with Sizes() as sizes:
            inspection.token_losses(model, "ab" * (count // 2) + "a")
        largest.append(sizes.largest)
    assert largest[0] == largest[1] == 8192 * len(model.tokenizer)


# Reported


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: it is not installed")
def test_a_report_shows_every_text_in_its_writing_direction(
    all_trained: dict[str, Trained], tmp_path: Path
) -> None:
    folders = [trained.run.folder for trained in all_trained.values()]
    report.write_report(folders, tmp_path / "report.html")
    browser = Chromium(tmp_path / "profile")
    try:
        page = Page(browser, tmp_path / "report.html")
        complaints, requests, traces = (
            page.console_messages(),
            page.requested_urls(),
            page.count_traces(),
        )
        shown = page.evaluate(
            "[...document.querySelectorAll('pre')].map(pre => "
            "[pre.dir, getComputedStyle(pre).unicodeBidi, pre.textContent])"
        )
    finally:
        browser.close()
    assert (complaints, requests, traces["symbols"]) == ([], [], len(folders))
    rows = [row for folder in folders for row in read_rows(folder / "samples.csv")[1]]
    for (*direction, text), row in zip(shown, rows, strict=True):
        assert direction == ["auto", "plaintext"]
        # HTML has no NUL, and only one kind of line break.
        assert printable(text) == printable(row["text"])


def printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()


# Large alphabets


def test_an_embedding_with_most_of_the_parameters_gives_a_notice(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", *SMALL]
    train_small(tmp_path, f"--data.corpus={trained.corpus}", *args)
    output = capsys.readouterr().err
    assert output.count("% of the parameters are in the embedding") == (len({*trained.text}) > 1000)


@pytest.mark.parametrize(
    ("config", "width", "notices"),
    [("bigram", 0, 0), ("multi_head", 32, 1), ("gpt_cpu", 32, 1), ("gpt_cpu", 128, 0)],
)
def test_large_networks_and_bigrams_give_no_such_notice(
    config: str, width: int, notices: int
) -> None:
    alphabet = "".join(sorted(CJK[:2_000]))
    args = [
        f"--config={CONFIGS[0].with_stem(config)}",
        *([f"--model.net.width={width}"] if width else []),
    ]
    lines = large_alphabet_notice(parse(*args, f"--data.alphabet={alphabet}").model)
    assert len(lines) == notices
    assert all("alphabet of 2,000" in line for line in lines)
