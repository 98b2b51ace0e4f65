"""Reading runs: everything present is read; a damaged or missing file hides nothing else."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from fake_runs import metric_rows, write_csv, write_fake_run
from PIL import Image

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs import reading
from lit_gpt_scratch.runs.dashboard import PANELS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "runs" / "gpt" / "version_0")


def read(folder: Path) -> reading.Run:
    return reading.read_run(folder, "label", 3)


def test_all_parts_of_a_run_are_read(run: Path) -> None:
    found = read(run)
    assert found.network == "ModernGPT"
    assert found.config["model.net.width"] == "96"
    assert found.config["data.val_fraction"] == "0.1"
    assert found.about["parameters"] == 4225
    assert found.train["mfu"] == [0.3] * 12
    assert found.val["tokens_seen"] == [25_600.0 * (i + 1) for i in range(12)]
    assert found.symbols["\n"] == (999, 1.51)
    steps = [step for step, _ in found.samples]
    assert (steps[0], steps[-1], len(steps)) == ("100", "1200", reading.MAX_STEPS)
    assert found.samples[0][1] == [("To be", "\nor not 100")]
    assert [step for step, _ in found.attention] == ["100", "700", "1200"]
    assert all(found.has_panel(panel) for panel in PANELS if panel.kind != "layers")


def test_an_empty_folder_has_no_panel(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert not any(found.has_panel(panel) for panel in PANELS)
    assert found.network == ""


@pytest.mark.parametrize(
    "text", ["", "a: [", "- a list", "\x00", "a: !!python/object/apply:builtins.str [b]"]
)
def test_a_broken_config_reads_as_empty(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text, encoding="utf-8")
    assert read(run).config == {}
    assert read(run).train["lr"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.23456789", 1.23457), (4225, 4225), ("1e-9", 1e-9), ("nan", None), ("-inf", None),
        ("", None), ("12a", None), (None, None), ([1], None), (10**400, None),
    ],
)  # fmt: skip
def test_a_number_is_finite_with_six_digits_or_none(text: object, number: float | None) -> None:
    assert reading.parse_number(text) == number


def test_an_invalid_number_is_a_gap_in_its_own_column_only(run: Path) -> None:
    rows = [row for step in (1, 2, 3) for row in metric_rows(step, 1.5)]
    rows[2]["train/loss"], rows[3]["val/loss"] = "nan", "torn"  # type: ignore[assignment]
    write_csv(run / "metrics.csv", rows)
    found = read(run)
    for column in (found.train["train/loss"], found.val["val/loss"]):
        assert [value is None for value in column] == [False, True, False]
    assert found.train["step"] == found.val["step"] == [1, 2, 3]


@pytest.mark.parametrize(("count", "most"), [(0, 3), (3, 3), (4, 3), (100, 7), (101, 100)])
def test_subsample_keeps_order_and_both_ends(count: int, most: int) -> None:
    kept = reading.subsample(range(count), most)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, most)
    assert (kept[:1], kept[-1:]) == ([*range(count)][:1], [*range(count)][-1:])


def test_an_image_is_unchanged_or_scaled_down_to_its_limit(run: Path) -> None:
    path = run / "attention" / "step_001200.png"
    assert dict(reading.read_run(run, "label", 3, 1 << 20).attention)["1200"] == (
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    )
    noise = np.random.default_rng(1).integers(256, size=(1200, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    url = dict(reading.read_run(run, "label", 3, 30_000).attention)["1200"]
    data = base64.b64decode(url.removeprefix("data:image/webp;base64,"))
    assert len(data) <= 30_000
    width, height = Image.open(io.BytesIO(data)).size
    assert height == pytest.approx(2 * width, abs=2)
    assert height > 200


def test_symbols_come_from_the_last_validation(run: Path) -> None:
    rows = [
        {"step": step, "symbol": symbol, "count": 9, "loss": step}
        for step, symbol in ((1, "a"), (2, "b"), (2, "\n"))
    ]
    write_csv(run / "symbols.csv", rows)
    assert read(run).symbols == {"b": (9, 2), "\n": (9, 2)}


def test_runs_are_found_below_any_folder_and_by_default_the_newest_of_each_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """version_10 is newer than version_9, W&B's own files are no run, and no run comes twice."""
    for name in ("gpt/version_9", "gpt/version_10", "bigram/version_0"):
        inner = tmp_path / "runs" / name / "wandb" / "files"
        inner.mkdir(parents=True)
        for folder in (inner, inner.parents[1]):
            (folder / "config.yaml").write_text("", encoding="utf-8")
    (tmp_path / "runs" / "gpt" / "version_11").mkdir()  # nothing in it yet
    monkeypatch.chdir(tmp_path)

    def found(*paths: str) -> list[str]:
        folders = reading.find_runs([Path(path) for path in paths])
        return [str(folder.relative_to(tmp_path.resolve() / "runs")) for folder in folders]

    assert found() == ["bigram/version_0", "gpt/version_10"]
    assert found("runs") == ["bigram/version_0", "gpt/version_9", "gpt/version_10"]
    assert found("runs/gpt/version_9", "runs/gpt") == ["gpt/version_9", "gpt/version_10"]


def test_a_missing_folder_or_one_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist: name a folder of runs"):
        reading.find_runs([tmp_path / "none"])
    with pytest.raises(InputError, match="contains no run: give a folder such as runs/NAME"):
        reading.find_runs([tmp_path])


def test_labels_are_just_long_enough_to_be_unique() -> None:
    one, two, three = Path("/a/runs/gpt/version_0"), Path("/b/runs/gpt/version_0"), Path("/c/d/e")
    assert reading.unique_labels([one, three]) == ["gpt/version_0", "d/e"]
    assert reading.unique_labels([one, two]) == ["a/runs/gpt/version_0", "b/runs/gpt/version_0"]
