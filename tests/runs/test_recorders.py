"""What `fit` records at each validation, and its progress output."""

import csv
import io
import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from laws import CONFIGS, train_small
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt_scratch import inspection
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.generation import default_prompt
from lit_gpt_scratch.inspection import drawing
from lit_gpt_scratch.runs.callbacks import SampleRecorder

EVERY = ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> CharCLI:
    return train_small(tmp_path_factory.mktemp("run"), *EVERY, "--seed_everything=7")


def test_each_validation_draws_samples_with_the_same_prompt_and_seed(run: CharCLI) -> None:
    """The checkpoint of a step generates the same texts."""
    found = rows(run.folder / "samples.csv")
    assert [int(row["step"]) for row in found] == [2, 2, 4, 4]
    model = inspection.load(run.folder / "checkpoints" / "last.ckpt")
    prompt = model.tokenizer.encode(default_prompt(model.tokenizer)).repeat(2, 1)
    settings = replace(SampleRecorder.settings, seed=7)
    assert [row["text"] for row in found[2:]] == model.generate(prompt, settings)
    assert {row["prompt"] for row in found} == {default_prompt(model.tokenizer)}


def test_many_validations_draw_few_samples_and_pictures(tmp_path: Path) -> None:
    """Also if the run is stopped in between, and resumed."""
    callback = {"class_path": "extra_callbacks.SendSignal", "init_args": {"step": 9}}
    every = ["--trainer.val_check_interval=1", "--trainer.max_steps=14"]
    expected = [1, 2, 3, 4, 8, 14]
    whole = train_small(tmp_path / "whole", *every).folder
    with pytest.raises(SystemExit):
        train_small(tmp_path / "parts", *every, f"--trainer.callbacks={json.dumps([callback])}")
    (parts,) = (tmp_path / "parts").glob("runs/*/*")
    last = str(parts / "checkpoints" / "last.ckpt")
    main(
        [
            "fit",
            "--config",
            str(parts / "config.yaml"),
            "--ckpt_path",
            last,
            "--trainer.callbacks=null",
        ]
    )
    for folder in (whole, parts):
        assert [int(row["step"]) for row in rows(folder / "samples.csv")[::2]] == expected
        assert [int(path.stem[-6:]) for path in sorted(folder.glob("attention/*"))] == expected
        assert {int(row["step"]) for row in rows(folder / "symbols.csv")} == {*range(1, 15)}


@torch.no_grad()
def test_a_characters_loss_is_the_mean_over_its_occurrences(run: CharCLI) -> None:
    model, data = run.model.eval(), run.datamodule
    ids = data.tokens[data.splits.val.start : data.splits.val.stop].long()
    found = [row for row in rows(run.folder / "symbols.csv") if row["step"] == "4"]
    losses: dict[str, list[float]] = {}
    for start in range(0, len(ids) - 1, data.context):
        window = ids[start : start + data.context + 1]
        logits = model.net(window[None, :-1])[0]
        each = F.cross_entropy(logits, window[1:], reduction="none")
        for target, loss in zip(window[1:], each, strict=True):
            losses.setdefault(data.alphabet[int(target)], []).append(float(loss))
    assert {row["symbol"]: int(row["count"]) for row in found} == {
        symbol: len(of) for symbol, of in losses.items()
    }
    for row in found:
        expected = sum(losses[row["symbol"]]) / len(losses[row["symbol"]])
        assert float(row["loss"]) == pytest.approx(expected, abs=1e-2)  # trained in bf16
    mean = sum(int(row["count"]) * float(row["loss"]) for row in found) / (len(ids) - 1)
    (last,) = [
        row for row in rows(run.folder / "metrics.csv") if row["step"] == "4" and row["val/loss"]
    ]
    assert mean == pytest.approx(float(last["val/loss"]), abs=1e-4)


def test_a_bigram_leaves_all_files_except_attention_images(tmp_path: Path) -> None:
    bigram = next(path for path in CONFIGS if path.stem == "bigram")
    folder = train_small(tmp_path, config=bigram).folder
    assert {"about.yaml", "config.yaml", "metrics.csv", "samples.csv", "symbols.csv"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "attention").exists()


def test_an_attention_image_is_drawn_at_each_validation(run: CharCLI) -> None:
    names = sorted(path.name for path in (run.folder / "attention").iterdir())
    assert names == ["step_000002.png", "step_000004.png"]


def test_an_attention_image_shows_each_weight_of_each_head_in_its_place() -> None:
    """Rows are queries, columns are keys; darker is more; masked cells are grey."""
    first = [[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.25, 0.75]]
    weights = torch.tensor([first, [[1, 0, 0], [0, 1, 0], [1, 0, 0]]])
    layers = [
        inspection.LayerAttention("first", weights),
        inspection.LayerAttention("second", weights[:1]),
    ]
    cell = 20
    image = inspection.draw_heads(layers, "a\nb", cell).convert("RGB")
    left, top, gap = 2 * cell, 4 * cell, 2 * cell
    for row, (_, drawn) in enumerate(layers):
        for head, matrix in enumerate(drawn):
            x = head * (left + 3 * cell + gap) + gap + left + cell // 2
            y = row * (top + 3 * cell + gap) + top + cell // 2
            by_weight: dict[float, set[tuple[int, ...]]] = {}
            for query in range(3):
                for key in range(3):
                    seen = image.getpixel((x + key * cell, y + query * cell))
                    weight = -1.0 if key > query else float(matrix[query, key])
                    by_weight.setdefault(weight, set()).add(seen)
            assert all(len(colours) == 1 for colours in by_weight.values())
            (grey,) = by_weight.pop(-1.0)
            assert max(grey) - min(grey) < 5
            assert 200 < max(grey) < 240
            bright = [sum(*by_weight[weight]) for weight in sorted(by_weight)]
            assert bright == sorted(bright, reverse=True)
            assert len(set(bright)) == len(bright)


def test_the_titles_of_heads_do_not_overlap_and_the_scale_is_that_of_the_weights() -> None:
    """A name longer than a head is wide is written once; the bar has the shades of the cells."""
    one_head = inspection.LayerAttention("blocks.0.attention", torch.eye(2)[None])
    image = inspection.draw_heads([one_head], "ab").convert("RGB")
    assert image.width > 18 * 6
    cell, height = 20, 20 * (4 + 2 + 2)
    for weight in (0.0, 0.1, 0.5, 1.0):
        heads = torch.tensor([[[weight, 0], [0, 0]], [[0, 0], [0, 0]]])
        image = inspection.draw_heads([inspection.LayerAttention("long " * 9, heads)], "ab", cell)
        image = image.convert("RGB")
        drawn = image.getpixel((4 * cell + cell // 2, 4 * cell + cell // 2))
        place = 4 * cell + round(10 * cell * weight**0.5)
        shown = image.getpixel((min(max(place, 4 * cell + 1), 14 * cell - 2), height + cell // 2))
        assert shown == pytest.approx(drawn, abs=16)
        titles = (
            image.crop((0, 0, image.width, cell)),
            image.crop((0, cell, image.width, 5 * cell // 2)),
        )
        ink = [part.convert("L").point(lambda v: 255 * (v < 128)).getbbox() for part in titles]
        assert ink[0][2] > 8 * cell, "the layer's name is whole"
        assert ink[1][2] < image.width, "the second head has a title of its own"


@pytest.mark.parametrize("cell", [9, 20])
def test_the_letters_of_each_head_are_as_if_each_one_were_drawn(
    cell: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixel by pixel. Some of these letters are as tall or as wide as letters can be."""
    text = "a\nW█gǞ中\u0327|j"
    monkeypatch.setattr(Image.Image, "quantize", lambda picture, *_: picture)
    weights = torch.rand(3, len(text), len(text), generator=torch.Generator().manual_seed(0))
    layers = [inspection.LayerAttention(name, weights) for name in ("first", "second")]
    picture = inspection.draw_heads(layers, text, cell)
    monkeypatch.setattr(drawing, "visible", lambda text: " " * len(text))
    expected = inspection.draw_heads(layers, text, cell)
    assert ImageChops.difference(picture, expected).getbbox(), "no letter is drawn"
    pen = ImageDraw.Draw(expected)
    font_file = Path(mpl.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    font = ImageFont.truetype(font_file, cell + 1)
    left, top, gap = 2 * cell, 4 * cell, 2 * cell
    side = cell * len(text)
    for row, head in itertools.product(range(2), range(3)):
        x, y = head * (left + side + gap) + gap, row * (top + side + gap)
        for i, character in enumerate(inspection.visible(text)):
            middle = i * cell + cell // 2
            pen.text((x + left + middle, y + top - cell), character, "black", font, "mm")
            pen.text((x + left // 2, y + top + middle), character, "black", font, "mm")
    assert not ImageChops.difference(picture, expected).getbbox()


def test_mfu_is_the_flops_of_the_passes_over_the_peak_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_gpt_scratch.training.throughput.peak_flops", lambda *_: 1e9)
    # The default size: in a small network, attention is a larger part, and its kernels count
    # differently.
    size = "--model.net=ModernGPT"
    run = train_small(tmp_path, *EVERY, size, "--trainer.accumulate_grad_batches=2")
    model, data = run.model, run.datamodule
    batch = data.read_windows(data.train_windows(0))
    with FlopCounterMode(display=False) as counter:
        model.net.train()(batch.inputs).sum().backward()
    for row in rows(run.folder / "metrics.csv"):
        if row["mfu"]:
            flops_per_character = counter.get_total_flops() / batch.inputs.numel()
            expected = float(row["chars_per_sec"]) * flops_per_character / 1e9
            assert float(row["mfu"]) == pytest.approx(expected, rel=0.02)


class Terminal(io.StringIO):
    """Output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_progress_bar_and_a_sample_of_each_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    run = train_small(tmp_path, *EVERY, "--trainer.max_steps=40", "--trainer.val_check_interval=20")
    text = screen.getvalue()
    assert re.search(r"loss: train \d\.\d+, val \d\.\d+ \|.*40/40.*chars/s=", text)
    assert "step     20 of 40: val/loss" in text
    first = rows(run.folder / "samples.csv")[0]["text"].strip().splitlines()[0]
    assert f"  | {first}" in text


def test_a_log_file_gets_one_line_per_validation_and_no_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_small(tmp_path, *EVERY)
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    (last,) = [
        row for row in rows(run.folder / "metrics.csv") if row["step"] == "4" and row["val/bpc"]
    ]
    assert lines[1] == (
        f"step      4 of 4: val/loss {float(last['val/loss']):.4f}, "
        f"{float(last['val/loss']) / math.log(2):.3f} bits per character"
    )
    assert "\r" not in output.out + output.err


def test_an_attention_image_is_a_small_file(run: CharCLI) -> None:
    path = run.folder / "attention" / "step_000004.png"
    assert Image.open(path).width > 100
    assert path.stat().st_size < 100_000
