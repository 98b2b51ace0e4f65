"""Reading runs back: what is there is found, and what is torn or missing hides nothing else."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, measured, write_csv
from PIL import Image

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs import reading as logged
from lit_gpt_scratch.runs.dashboard import PANELS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "gpt" / "version_0")


def read(folder: Path) -> logged.Run:
    return logged.read_run(folder, "label", 3)


def test_a_run_is_read_whole(run: Path) -> None:
    found = read(run)
    assert found.network == "ModernGPT"
    assert found.config["model.net.width"] == "96"
    assert found.config["data.val_fraction"] == "0.1"
    assert found.about["parameters"] == 4225
    assert found.train["mfu"] == [0.3] * 12
    assert found.val["tokens_seen"] == [25_600.0 * (i + 1) for i in range(12)]
    assert found.symbols["\n"] == (999, 1.51)
    steps = [step for step, _ in found.samples]
    assert (steps[0], steps[-1], len(steps)) == ("100", "1200", logged.STEPS)
    assert found.samples[0][1] == [("To be", "\nor not 100")]
    assert [step for step, _ in found.attention] == ["100", "700", "1200"]
    assert all(found.shows(panel) for panel in PANELS)


def test_an_empty_run_shows_nothing(tmp_path: Path) -> None:
    """A folder without a single file of those that are looked for."""
    found = read(tmp_path)
    assert not any(found.shows(panel) for panel in PANELS)
    assert found.network == ""


def test_a_torn_row_is_left_out_and_those_before_it_stay(tmp_path: Path) -> None:
    """Wherever it is torn: in a number, in a quoted text, after a new line within one."""
    rows = [{"step": "1", "text": 'a, "b"\nc\r'}, {"step": "2", "text": "d\ne\nf"}]
    write_csv(tmp_path / "whole.csv", rows)
    whole = (tmp_path / "whole.csv").read_bytes()
    assert logged.read_table(tmp_path / "whole.csv") == rows
    second = whole.index(b"2,")
    for size in range(len(whole)):
        (tmp_path / "torn.csv").write_bytes(whole[:size])
        assert logged.read_table(tmp_path / "torn.csv") == (rows[:1] if size >= second else [])


@pytest.mark.parametrize(
    "text", ["", "a: [", "- a list", "\x00", "a: !!python/object/apply:builtins.str [b]"]
)
def test_a_broken_config_is_an_empty_one(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text)
    assert read(run).config == {}
    assert read(run).train["lr"]


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("1.23456789", 1.23457), (4225, 4225), ("1e-9", 1e-9), ("nan", None), ("-inf", None),
        ("", None), ("12a", None), (None, None), ([1], None), (10**400, None),
    ],
)  # fmt: skip
def test_a_number_is_finite_and_short_or_none(said: object, number: float | None) -> None:
    assert logged.number(said) == number


def test_what_is_no_number_is_a_gap_in_its_column_alone(run: Path) -> None:
    rows = [row for step in (1, 2, 3) for row in measured(step, 1.5)]
    rows[2]["train/loss"], rows[3]["val/loss"] = "nan", "torn"  # type: ignore[assignment]
    write_csv(run / "metrics.csv", rows)
    found = read(run)
    for column in (found.train["train/loss"], found.val["val/loss"]):
        assert [value is None for value in column] == [False, True, False]
    assert found.train["step"] == found.val["step"] == [1, 2, 3]


@pytest.mark.parametrize(("count", "most"), [(0, 3), (3, 3), (4, 3), (100, 7), (101, 100)])
def test_thinning_keeps_order_and_both_ends(count: int, most: int) -> None:
    kept = logged.thinned(range(count), most)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, most)
    assert (kept[:1], kept[-1:]) == ([*range(count)][:1], [*range(count)][-1:])


def test_an_image_is_as_it_was_or_fits_into_its_share(run: Path) -> None:
    path = run / "attention" / "step_001200.png"
    assert dict(logged.read_run(run, "label", 3, 1 << 20).attention)["1200"] == (
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    )
    noise = np.random.default_rng(1).integers(256, size=(1200, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    url = dict(logged.read_run(run, "label", 3, 30_000).attention)["1200"]
    data = base64.b64decode(url.removeprefix("data:image/webp;base64,"))
    assert len(data) <= 30_000
    width, height = Image.open(io.BytesIO(data)).size
    assert height == pytest.approx(2 * width, abs=2)
    assert height > 200


def test_symbols_are_those_of_the_last_validation(run: Path) -> None:
    rows = [
        {"step": step, "symbol": symbol, "count": 9, "loss": step}
        for step, symbol in ((1, "a"), (2, "b"), (2, "\n"))
    ]
    write_csv(run / "symbols.csv", rows)
    assert read(run).symbols == {"b": (9, 2), "\n": (9, 2)}


def test_runs_are_found_under_any_folder_the_newest_of_each_name_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """version_10 is newer than version_9, W&B's own files are no run, and none is taken twice."""
    for name in ("gpt/version_9", "gpt/version_10", "bigram/version_0"):
        inner = tmp_path / "runs" / name / "wandb" / "files"
        inner.mkdir(parents=True)
        for folder in (inner, inner.parents[1]):
            (folder / "config.yaml").write_text("")
    (tmp_path / "runs" / "gpt" / "version_11").mkdir()  # nothing in it yet
    monkeypatch.chdir(tmp_path)

    def found(*paths: str) -> list[str]:
        folders = logged.find_runs([Path(path) for path in paths])
        return [str(folder.relative_to(tmp_path.resolve() / "runs")) for folder in folders]

    assert found() == ["bigram/version_0", "gpt/version_10"]
    assert found("runs") == ["bigram/version_0", "gpt/version_9", "gpt/version_10"]
    assert found("runs/gpt/version_9", "runs/gpt") == ["gpt/version_9", "gpt/version_10"]


def test_a_folder_that_is_missing_or_has_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is not there: name another, or run fit first"):
        logged.find_runs([tmp_path / "none"])
    with pytest.raises(InputError, match="has no run in it: name one such as runs/NAME"):
        logged.find_runs([tmp_path])


def test_labels_are_as_long_as_it_takes_to_tell_runs_apart() -> None:
    one, two, three = Path("/a/runs/gpt/version_0"), Path("/b/runs/gpt/version_0"), Path("/c/d/e")
    assert logged.labels([one, three]) == ["gpt/version_0", "d/e"]
    assert logged.labels([one, two]) == ["a/runs/gpt/version_0", "b/runs/gpt/version_0"]
