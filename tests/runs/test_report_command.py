"""The report's scoreboard and references, and the command `report`, without a browser."""

import math
from pathlib import Path

import pytest
from fake_runs import metric_rows, write_csv, write_fake_run

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256
from lit_gpt_scratch.runs import report
from lit_gpt_scratch.runs.groups import Group, make_groups, seed_of, spread
from lit_gpt_scratch.runs.reading import Columns, Run, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "runs" / "gpt" / "version_0")


def read(folder: Path) -> Run:
    return read_run(folder, "label")


def test_the_scoreboard_has_the_values_of_the_files(tmp_path: Path) -> None:
    """Best and last loss differ; a config has the mean and the range of its runs."""
    folders = [
        write_fake_run(tmp_path / name, scale) for name, scale in {"a": 1.5, "b": 1.4}.items()
    ]
    rows = [row for step in (100, 400, 900) for row in metric_rows(step, 1.5)]
    rows[3] |= {"val/loss": 1.25, "val/bpc": 1.25 / math.log(2)}  # at step 400; it rises again
    write_csv(folders[0] / "metrics.csv", rows)
    runs = [read(folder) for folder in folders]
    row, other = report.make_scoreboard([Group("a", runs[:1]), Group("b", runs[1:])])
    last_b = 1.4 * (1 + 3 / math.sqrt(1200))
    bits = [f"{loss / math.log(2):.3f}" for loss in (1.25, last_b)]
    assert [score.text for score in row] == [
        "1.2500", "1.6500", bits[0], "900", "4,225", "18", "10,002", "30%",
    ]  # fmt: skip
    assert [score.text for score in other][:4] == [f"{last_b:.4f}"] * 2 + [bits[1], "1,200"]
    assert not any(score.range or score.is_best for score in [*row, *other])
    [both] = report.make_scoreboard([Group("a", runs)])
    assert both[0].text == f"{(1.25 + last_b) / 2:.4f}"
    assert both[0].range == f"1.2500 to {last_b:.4f}"
    assert both[4].range == "", "equal values have no range"


def change(run: Run, **settings: str) -> Run:
    return run._replace(config=run.config | {k.replace("__", "."): v for k, v in settings.items()})


def test_only_losses_on_the_same_text_are_compared(tmp_path: Path) -> None:
    """The best is better than each other, by the seeds that they share."""
    good, bad = (
        [read(write_fake_run(tmp_path / f"{scale}", scale)) for scale in scales]
        for scales in ((1.5, 1.6), (1.9, 2.01))
    )
    one, other = (
        Group(name, [runs[0], change(runs[1], seed_everything="2")])
        for name, runs in (("good", good), ("bad", bad))
    )
    repeated = Group("good", [good[0], good[0]])
    elsewhere = Group("bad", [change(run, data__test_fraction="0.1") for run in other.runs])
    for groups, expected in [
        ([one, other], [True, False]),
        ([one, other, one._replace(label="equal")], [False] * 3),
        ([repeated, other], [False, False]),
        ([one, elsewhere], [False, False]),
        ([one], [False]),
    ]:
        assert [row[0].is_best for row in report.make_scoreboard(groups)] == expected


def test_runs_are_one_group_if_only_seeds_and_noise_differ(run: Path) -> None:
    """And if their folder has one name; labels stay unique."""
    first = read(run)._replace(label="gpt/version_0")
    second = change(first, seed_everything="2", data__seed="2", wandb__mode="x", ckpt_path="y")
    second = second._replace(label="gpt/version_1")
    lower = change(first, model__optimizer__lr="0.1")._replace(label="gpt/version_2")
    lower_too = lower._replace(label="gpt/version_3")
    other = first._replace(label="other/version_0")
    groups = make_groups([first, lower, second, other])
    assert [(group.label, len({seed_of(r) for r in group.runs})) for group in groups] == [
        ("gpt", 2), ("gpt/version_2", 1), ("other/version_0", 1),
    ]  # fmt: skip
    labels = [group.label for group in make_groups([first, lower, second, lower_too])]
    assert labels == ["gpt/version_0", "gpt/version_2"]
    assert report.find_differences(groups) == [("model.optimizer.lr", ["", "0.1", ""])]


def test_runs_that_have_lost_their_config_are_groups_of_their_own(run: Path) -> None:
    """A bigram and a GPT may be in one folder."""
    lost = read(run)._replace(config={})
    labels = [f"a/version_{i}" for i in range(2)]
    groups = make_groups([lost._replace(label=label) for label in labels])
    assert [group.label for group in groups] == labels


def test_a_mean_has_only_steps_that_all_runs_have() -> None:
    one: Columns = {"step": [1, 2, 3], "tokens_seen": [8, 16, 24], "val/loss": [4, 3, 2]}
    two: Columns = {"step": [1, 2], "tokens_seen": [8, 16], "val/loss": [2, None]}
    assert spread([one, two]) == {
        "mean": {"step": [1, 2], "tokens_seen": [8, 16], "val/loss": [3, None]},
        "low": {"val/loss": [2, None]},
        "high": {"val/loss": [4, None]},
    }


def test_a_mean_leaves_out_runs_without_steps(run: Path) -> None:
    """And a report of such runs, which may come from strangers, is written."""
    whole: Columns = {"step": [1, 2], "val/loss": [4, 3]}
    without: Columns = {"val/loss": [9]}
    assert spread([without, whole]) == spread([whole])
    assert spread([without, without]) == {"mean": {}}
    rows = [row for step in (100, 200) for row in metric_rows(step, 1.5)]
    write_csv(run / "metrics.csv", [{**row, "step": ""} for row in rows])
    assert "gpt" in report.render_report([read(run)._replace(label=f"gpt/{i}") for i in range(2)])


def test_the_help_calls_no_argument_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--help"])
    assert "required" not in capsys.readouterr().out


def test_references_appear_only_with_runs_on_the_same_text(run: Path) -> None:
    assert "nanoGPT on a GPU" in report.render_report([read(run)])
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for part in ("val_fraction: 0.1", TINY_SHAKESPEARE_SHA256):
        (run / "config.yaml").write_text(config.replace(part, f"{part}5"), encoding="utf-8")
        assert "nanoGPT on a GPU" not in report.render_report([read(run)])


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    groups = [
        Group(name, [read(write_fake_run(tmp_path / name, scale))])
        for name, scale in {"a": 1.5, "b": 1.0}.items()
    ]
    assert report.find_differences(groups) == [("model.net.width", ["96", "64"])]
    assert report.find_differences(groups[:1]) == []


def test_the_command_writes_one_file_and_prints_its_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It replaces an older report."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        report.main([])
        assert capsys.readouterr().out == "report.html\n"
    report.main([str(run), "--output", "other.html"])
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "report.html", "other.html"}


ERRORS = {
    "folder nowhere does not exist": ["nowhere"],
    "folder notes.html is a file": ["notes.html"],
    "nowhere.json: No such file": ["nowhere.json"],
    "bad.json is not a table that compare wrote": ["bad.json"],
    "folder empty contains no run": ["empty"],
    "output notes.html exists and is no report": ["runs", "--output=notes.html"],
    "output empty cannot be written (Is a directory)": ["runs", "--output=empty"],
    "output notes.html/r.html cannot be written": ["runs", "--output=notes.html/r.html"],
    "--outptu": ["runs", "--outptu=report.html"],
}


@pytest.mark.parametrize("message", ERRORS)
@pytest.mark.usefixtures("run")
def test_an_error_is_one_line_and_nothing_is_written(
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("<p>mine</p>", encoding="utf-8")
    (tmp_path / "bad.json").write_text('{"variants": []}', encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        report.main(ERRORS[message])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in line
    assert line.startswith("lit-gpt-scratch report: error: ")
    assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.html").read_text(encoding="utf-8") == "<p>mine</p>"
