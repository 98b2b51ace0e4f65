"""The offline report, in a real browser: it shows what is on disk and makes no requests."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Chromium, Page
from fake_runs import metric_rows, write_csv, write_fake_run

from lit_gpt_scratch.runs import report
from lit_gpt_scratch.runs.dashboard import AXES, PANELS
from lit_gpt_scratch.runs.reading import MAX_STEPS

RUNGS = ["bigram", "mean", "single_head", "multi_head", "transformer", "gpt_cpu_classic", "gpt_cpu"]
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>&amp;\u2028"
ALL = "[...document.querySelectorAll"
SECTIONS = list(dict.fromkeys(panel.section for panel in PANELS))
PLOTS = [panel for panel in PANELS if panel.kind in ("line", "bar")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if not CHROMIUM:
        pytest.skip("needs Chromium: it is not installed")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def choose(selector: str, value: str) -> str:
    """Return JavaScript that sets the value of an input; its result is the input."""
    return f"box = document.querySelector({selector!r}); box.value = {value!r}; box"


def open_report(browser: Chromium, folder: Path, output: Path) -> Page:
    report.write_report([folder], output)
    return Page(browser, output)


@pytest.mark.parametrize("names", [["gpt_cpu"], RUNGS, [f"run_{i}" for i in range(20)]], ids=len)
def test_every_panel_is_drawn_without_requests_or_console_messages(
    names: list[str], browser: Chromium, tmp_path: Path
) -> None:
    """Runs have more samples and images than the report shows; noise images do not compress."""
    for i, name in enumerate(names):
        write_fake_run(
            tmp_path / "runs" / name / "version_0", 1.3 + i / 20, 700, "To be " * 50, side=200
        )
    start = time.perf_counter()
    page = open_report(browser, tmp_path / "runs", tmp_path / "report.html")
    print(f"{len(names)} runs: made and drawn in {time.perf_counter() - start:.1f} s")
    assert (tmp_path / "report.html").stat().st_size < 8e6
    assert page.count_traces() == {panel.key: len(names) for panel in PLOTS}
    titles = page.evaluate(f"{ALL}('h2, h3')].map(heading => heading.innerText)")
    assert {panel.title for panel in PLOTS} | {panel.section for panel in PANELS} <= set(titles)
    assert page.evaluate("document.querySelectorAll('details pre').length") == MAX_STEPS * len(
        names
    )
    images = {1: 8, 7: 5, 20: 2}[len(names)]  # per run
    assert page.evaluate("document.images.length") == images * len(names)
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth)"
    )
    assert page.evaluate("document.querySelectorAll('figure').length") == len(names)
    assert page.requested_urls() == []
    assert page.console_messages() == []


@pytest.fixture(scope="module")
def rungs(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A report of three runs."""
    folder = tmp_path_factory.mktemp("rungs")
    for i, name in enumerate(RUNGS[:3]):
        write_fake_run(folder / "runs" / name / "version_0", scale=2 - i / 10)
    return open_report(browser, folder / "runs", folder / "report.html")


def test_a_run_is_hidden_everywhere_at_once(rungs: Page) -> None:
    """In all plots, samples and images; it can be shown again."""
    hidden = f"{ALL}('.plot')].map(plot => plot.data.map(trace => trace.visible === false))"
    parts = f"{ALL}('[data-run]')].filter(part => part.hidden).map(part => part.dataset.run)"
    rungs.evaluate("document.querySelectorAll('.chips input')[1].click()")
    assert rungs.evaluate(hidden) == [[False, True, False]] * len(PLOTS)
    assert rungs.evaluate(parts) == ["1", "1"]
    rungs.evaluate("document.querySelector('button[value=none]').click()")
    assert rungs.evaluate(hidden) == [[True, True, True]] * len(PLOTS)
    rungs.evaluate("document.querySelector('button[value=all]').click()")
    assert rungs.evaluate(hidden) == [[False, False, False]] * len(PLOTS)
    assert rungs.evaluate(parts) == []


@pytest.mark.parametrize("axis", AXES)
def test_curves_match_metrics_csv_against_any_axis(axis: str, rungs: Page) -> None:
    rungs.evaluate(f"{choose('#axis', axis)}.onchange({{target: box}})")
    drawn = rungs.evaluate(
        f"Object.fromEntries({ALL}('.plot')]"
        ".map(plot => [plot.dataset.key, [plot.data[0].x, plot.data[0].y]]))"
    )
    rows = [row for i in range(12) for row in metric_rows(100 * (i + 1), 2.0)]
    for panel in PANELS:
        if panel.kind == "line":
            there = [row for row in rows if panel.key in row]
            assert drawn[panel.key][0] == pytest.approx([row[axis] for row in there], rel=1e-5)
            assert drawn[panel.key][1] == pytest.approx([row[panel.key] for row in there], rel=1e-5)
    title = "document.querySelector('.plot .xtitle').textContent"
    assert rungs.evaluate(title) == AXES[axis]


def test_long_curves_are_subsampled_and_keep_both_ends(browser: Chromium, tmp_path: Path) -> None:
    """The scoreboard still has a best loss that the curve skips."""
    run = write_fake_run(tmp_path / "run")
    rows = [row for i in range(5000) for row in metric_rows(i + 1, 1.5)]
    rows[2 * 2504 + 1]["val/loss"] = 0.5
    write_csv(run / "metrics.csv", rows)
    page = open_report(browser, run, tmp_path / "report.html")
    for x in page.evaluate("plots.filter(p => p.dataset.key != 'symbols').map(p => p.data[0].x)"):
        assert (len(x), x[0], x[-1]) == (report.MAX_POINTS, 1, 5000)
        assert x == sorted(set(x))
        assert 2505 not in x
    assert "0.5000" in page.evaluate("document.getElementById('scores').innerText")


def test_the_best_scores_are_bold(rungs: Page) -> None:
    """The third run has the best losses; all runs have the same speed."""
    rows = rungs.evaluate(f"{ALL}('#scores tr')].map(row => row.querySelectorAll('b').length)")
    assert rows[1:4] == [2, 2, 5]
    assert not any(rows[4:])


def test_references_are_lines_in_the_plot_of_validation_loss(rungs: Page) -> None:
    lines = rungs.evaluate(f"{ALL}('.plot')][0].layout.shapes.map(shape => shape.y0)")
    assert {1.6357, 1.4697, 1.88, 2.5804} <= set(lines)
    assert rungs.evaluate("document.querySelectorAll('#scores tbody.quiet tr').length") == len(
        lines
    )


def test_plots_react_to_the_mouse(rungs: Page) -> None:
    """Hover, zoom and save work; no button uploads data."""
    rungs.evaluate("Plotly.Fx.hover(plots[0], [{curveNumber: 1, pointNumber: 3}])")
    assert "mean/version_0" in rungs.evaluate("plots[0].querySelector('.hoverlayer').textContent")
    titles = rungs.evaluate(f"{ALL}('.modebar-btn')].map(button => button.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"] * len(PLOTS)
    assert rungs.evaluate("Plotly.toImage(plots[0])").startswith("data:image/png")
    assert rungs.console_messages() == []


def test_characters_have_visible_names_and_the_most_frequent_comes_first(rungs: Page) -> None:
    ticks = rungs.evaluate(f"{ALL}('[data-key=symbols] .xtick')].map(tick => tick.textContent)")
    assert ticks == ["a", "⏎", "␣", "é", "<", "&", ">"]


def test_the_slider_selects_the_step_of_the_image(rungs: Page) -> None:
    seen = f"{ALL}('figure span:not([hidden])')].map(step => step.innerText)"
    assert rungs.evaluate(seen) == ["step 1200"] * 3
    rungs.evaluate(f"{choose('figure input', '0')}.oninput({{target: box}})")
    assert rungs.evaluate(seen) == ["step 100", "step 1200", "step 1200"]
    assert rungs.evaluate("document.querySelectorAll('figure img:not([hidden])').length") == 3


def test_hostile_text_is_shown_and_not_executed(browser: Chromium, tmp_path: Path) -> None:
    """In run names, settings, prompts, samples and the alphabet."""
    name = EVIL.replace("/", "|")  # of a folder
    for version in ("version_0", "version_1"):
        run = write_fake_run(tmp_path / "runs" / name / version, text=EVIL + version)
    write_csv(run / "symbols.csv", [{"step": 1, "symbol": EVIL[:-1], "count": 1, "loss": 1}])
    page = open_report(browser, tmp_path / "runs", tmp_path / "report.html")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert (page.requested_urls(), page.console_messages()) == ([], [])
    page.evaluate("for (const p of plots) Plotly.Fx.hover(p, [{curveNumber: 0, pointNumber: 0}])")
    for place, text in {
        "#scores td": name, "details summary": name, ".chips": name, ".settings": EVIL, "pre": EVIL,
        "pre b": EVIL, ".hoverlayer": name[:15], "[data-key=symbols] .xaxislayer-above": EVIL[:-1],
    }.items():  # fmt: skip
        found = page.evaluate(f"{ALL}({place!r})].map(part => part.textContent).join()")
        assert text in found, place


def test_the_page_cannot_send_requests_or_evaluate_text(browser: Chromium, tmp_path: Path) -> None:
    page = open_report(browser, write_fake_run(tmp_path / "run"), tmp_path / "report.html")
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        == "refused"
    )
    image = "i = new Image(); i.onerror = () => f('refused'); i.src = 'http://127.0.0.1:9/'"
    assert page.evaluate(f"new Promise(f => {{{image}}})") == "refused"
    with pytest.raises(AssertionError, match="EvalError"):
        page.evaluate("setTimeout.constructor('return 1')()")
    assert all("Content Security Policy" in str(message) for message in page.console_messages())


def test_incomplete_runs_show_what_they_have(browser: Chromium, tmp_path: Path) -> None:
    """An old run, one that has just started, and one that was killed while writing."""
    old = write_fake_run(tmp_path / "runs" / "old" / "version_0")
    for name in ("about.yaml", "samples.csv", "symbols.csv"):
        (old / name).unlink()
    shutil.rmtree(old / "attention")
    started = write_fake_run(tmp_path / "runs" / "started" / "version_0", validations=0)
    (started / "metrics.csv").write_text("", encoding="utf-8")
    killed = write_fake_run(tmp_path / "runs" / "killed" / "version_0")
    for path in killed.glob("*.*"):
        path.write_bytes(path.read_bytes()[:-9])
    for path in (killed / "attention").iterdir():
        path.write_bytes(path.read_bytes()[:-99])
    page = open_report(browser, tmp_path / "runs", tmp_path / "report.html")
    assert page.console_messages() == []
    assert page.count_traces() == {panel.key: 1 if panel.kind == "bar" else 2 for panel in PLOTS}
    assert page.evaluate(f"[{ALL}('details')].length, document.images.length]") == [1, 0]
    assert "started/version_0" in page.evaluate("document.getElementById('scores').innerText")
    page = open_report(browser, old, tmp_path / "report.html")
    assert page.console_messages() == []
    assert page.count_traces() == {panel.key: 1 for panel in PLOTS if panel.kind == "line"}
    assert page.evaluate(f"{ALL}('h2')].map(heading => heading.innerText)") == SECTIONS[:3]
