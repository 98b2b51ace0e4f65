"""The offline report, in a real browser: it shows what is on disk and makes no requests."""

import math
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest
import yaml
from chromium import CHROMIUM, Chromium, Page
from fake_runs import metric_rows, write_csv, write_fake_run

from lit_gpt_scratch.runs import report
from lit_gpt_scratch.runs.dashboard import AXES, PANELS
from lit_gpt_scratch.runs.reading import MAX_STEPS

RUNGS = ["bigram", "mean", "single_head", "multi_head", "transformer", "gpt_cpu_classic", "gpt_cpu"]
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>&amp;\u2028"
ALL = "[...document.querySelectorAll"
SECTIONS = list(dict.fromkeys(panel.section for panel in PANELS))
PLOTS = [panel for panel in PANELS if panel.kind in ("line", "layers", "bar")]
LAYERS = 3  # of a fake run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if not CHROMIUM:
        pytest.skip("needs Chromium: it is not installed")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def traces(runs: int, bars: int | None = None) -> dict[str, int]:
    """Return how many traces each plot has. Some runs may have no bars."""
    counts = {"line": runs, "layers": LAYERS * runs, "bar": runs if bars is None else bars}
    return {panel.key: counts[panel.kind] for panel in PLOTS}


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
    assert page.count_traces() == traces(len(names))
    titles = page.evaluate(f"{ALL}('h2, h3')].map(heading => heading.innerText)")
    assert {panel.title for panel in PLOTS} | set(SECTIONS[1:]) <= set(titles)
    assert page.evaluate("document.querySelectorAll('pre').length") == MAX_STEPS * len(names)
    images = {1: 8, 7: 5, 20: 2}[len(names)]  # per run
    assert page.evaluate("document.images.length") == images * len(names)
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth)"
    )
    assert page.evaluate("document.querySelectorAll('figure').length") == len(names)
    assert page.requested_urls() == []
    assert page.console_messages() == []


def write_seeds(folder: Path, scales: dict[int, float], **changes: str) -> None:
    """Write runs of one config; `scales` gives each seed its factor of the losses."""
    for number, (seed, scale) in enumerate(scales.items()):
        run = write_fake_run(folder / f"version_{number}", scale)
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["model"]["net"]["init_args"]["width"] = 64
        config |= {"seed_everything": seed, "wandb": {"mode": f"mode {seed}"}, **changes}
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture(scope="module")
def seeds(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A report of two configs with three seeds each."""
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder / "runs" / "better", {1: 1.4, 2: 1.5, 3: 1.45})
    write_seeds(folder / "runs" / "worse", {1: 1.6, 2: 1.8, 3: 1.7})
    return open_report(browser, folder / "runs", folder / "report.html")


def set_control(name: str, value: str, event: str = "onchange") -> str:
    """Return JavaScript that sets a control of the toolbar, and draws at once."""
    assign = f"checked = {value}" if value in ("true", "false") else f"value = {value!r}"
    return f"control('{name}').{assign}; control('{name}').{event}({{}}); draw(plots)"


def test_runs_of_one_config_are_a_mean_and_a_band(seeds: Page) -> None:
    """From the least to the greatest; single runs appear on demand."""
    data = "plots[0].data.map(trace => [trace.name ?? null, trace.y, trace.line.color])"
    (band, line, _, other) = seeds.evaluate(data)
    steps = [100 * (i + 1) for i in range(12)]
    low, high = ([scale * (1 + 3 / math.sqrt(step)) for step in steps] for scale in (1.4, 1.5))
    average = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    assert (line[0], other[0]) == ("better", "worse")
    assert line[1] == pytest.approx(average, rel=1e-5)
    assert band[1] == pytest.approx([*high, *reversed(low)], rel=1e-5)
    assert line[2] != other[2]
    seeds.evaluate(set_control("singles", "true"))
    names = [trace[0] for trace in seeds.evaluate(data)]
    assert [name for name in names if name and "version" in name] == [
        f"{config}/version_{i}" for config in ("better", "worse") for i in (0, 1, 2)
    ]
    assert {color for _, _, color in seeds.evaluate(data)[1:5]} == {line[2]}
    assert seeds.evaluate("all('tr.single').filter(row => !row.hidden).length") == 6
    seeds.evaluate(set_control("singles", "false"))
    assert len(seeds.evaluate(data)) == 4


def test_the_toolbar_smooths_only_what_is_noisy(seeds: Page) -> None:
    """Each point of training becomes the mean of its neighbours; a validation is exact."""
    trace = "curves.find(plot => plot.dataset.key === '{}').data[1].y"
    before = {key: seeds.evaluate(trace.format(key)) for key in ("train/loss", "val/loss", "lr")}
    seeds.evaluate(set_control("smooth", "2", "oninput"))
    after = {key: seeds.evaluate(trace.format(key)) for key in before}
    seeds.evaluate(set_control("smooth", "0", "oninput"))
    assert after["val/loss"] == before["val/loss"]
    assert after["lr"] == before["lr"]
    y = before["train/loss"]
    assert after["train/loss"][5] == pytest.approx(sum(y[3:8]) / 5)
    assert (after["train/loss"][0], after["train/loss"][-1]) == (y[0], y[-1])


def test_a_zoom_holds_in_all_panels(seeds: Page) -> None:
    """Their vertical axes then show the values inside; a double click shows all again."""
    ranges = "curves.map(plot => plot.layout.xaxis.range)"
    whole = seeds.evaluate(ranges)
    seeds.evaluate("Plotly.relayout(curves[1], {'xaxis.range': [1e5, 2e5]}) && 0")
    assert seeds.evaluate(ranges) == [[1e5, 2e5]] * len(whole)
    _, high = seeds.evaluate("curves[0].layout.yaxis.range")
    assert high < 1.8 * (1 + 3 / math.sqrt(400)) + 0.1
    seeds.evaluate("Plotly.relayout(curves[2], {'xaxis.autorange': true}) && 0")
    assert seeds.evaluate(ranges) == whole


def test_one_hover_shows_all_configs(seeds: Page) -> None:
    """Each with its mean and its range."""
    seeds.evaluate("Plotly.Fx.hover(plots[0], {xval: 102400})")
    text = seeds.evaluate("plots[0].querySelector('.hoverlayer').textContent")
    for config, scales in {"better": (1.45, 1.4, 1.5), "worse": (1.7, 1.6, 1.8)}.items():
        average, low, high = (f"{scale * 1.15:.5g}" for scale in scales)  # after 400 steps
        shown = rf"{config}\D*{average}0* \({low}0* to {high}0*\) at 102,400"
        assert re.search(shown, text), text


def test_a_click_on_a_heading_sorts_the_scores(rungs: Page) -> None:
    """Then in the other direction; the references stay at the end."""
    names = f"{ALL}('#scores tbody')].map(body => body.rows[0].cells[0].innerText.trim())"
    before = rungs.evaluate(names)
    click = "document.querySelectorAll('#scores th button')[1].click()"
    rungs.evaluate(click)
    ordered = rungs.evaluate(names)
    assert ordered[:3] == [f"{name}/version_0" for name in reversed(RUNGS[:3])]
    assert ordered[3:] == before[3:]
    rungs.evaluate(click)
    assert rungs.evaluate(names) == before


def test_a_button_writes_the_command_of_a_runs_playground(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only for runs with a checkpoint; the path is relative to the working directory."""
    for name in (EVIL.replace("/", ""), "none"):
        write_fake_run(tmp_path / "runs" / name / "version_0")
    (best,) = (tmp_path / "runs").glob("<*/version_0")
    (best / "checkpoints").mkdir()
    (best / "checkpoints" / "best.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    page = open_report(browser, tmp_path / "runs", tmp_path / "report.html")
    page.evaluate("document.querySelectorAll('.try').forEach(button => button.click())")
    command = page.evaluate("document.querySelector('#command code').innerText")
    expected = ["lit-gpt-scratch", "playground", best.relative_to(tmp_path).as_posix()]
    assert shlex.split(command) == expected
    assert page.evaluate("document.querySelectorAll('.try').length") == 1
    page.evaluate("document.querySelectorAll('#scores th button')[1].click()")  # it still sorts
    assert page.evaluate("window.pwned") is None
    assert page.console_messages() == []


def test_dark_mode_follows_the_system_and_the_switch(rungs: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    grey = "getComputedStyle(document.querySelector('.xtitle')).fill"
    light = rungs.evaluate(f"[{background}, {grey}]")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    rungs.call("Emulation.setEmulatedMedia", features=dark)
    rungs.evaluate("draw(plots)")
    seen = rungs.evaluate(f"[{background}, {grey}]")
    assert all(one != other for one, other in zip(seen, light, strict=True))
    rungs.evaluate("control('theme').click()")
    assert rungs.evaluate(f"[{background}, {grey}]") == light
    rungs.call("Emulation.setEmulatedMedia", features=[])
    rungs.evaluate("document.documentElement.style.colorScheme = ''; draw(plots)")


def test_losses_are_seen_without_scrolling_on_a_telephone(
    browser: Chromium, tmp_path: Path
) -> None:
    write_seeds(tmp_path / "a", {1: 1.4, 2: 1.5})
    report.write_report([tmp_path], tmp_path / "report.html")
    page = Page(browser, tmp_path / "report.html", width=400)
    box = page.evaluate("plots[0].getBoundingClientRect().toJSON()")
    assert box["bottom"] < 500
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.fixture(scope="module")
def rungs(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A report of three runs."""
    folder = tmp_path_factory.mktemp("rungs")
    for i, name in enumerate(RUNGS[:3]):
        write_fake_run(folder / "runs" / name / "version_0", scale=2 - i / 10)
    return open_report(browser, folder / "runs", folder / "report.html")


def hidden_if(*runs: bool) -> list[list[bool]]:
    """Return which traces of each plot are hidden, from the runs that are."""
    return [
        [is_hidden for is_hidden in runs for _ in range(LAYERS if panel.kind == "layers" else 1)]
        for panel in PLOTS
    ]


def test_each_layer_is_a_curve_in_the_colour_of_its_config(seeds: Page) -> None:
    """The mean of the runs; later layers are darker."""
    plot = "plots.find(plot => plot.dataset.key === 'update_ratio')"
    drawn = seeds.evaluate(f"{plot}.data.map(t => [t.name, t.line.color, t.opacity, t.y[0]])")
    names, colors, opacities, first = zip(*drawn, strict=True)
    assert names == tuple(
        f"{config}, {layer}"
        for config in ("better", "worse")
        for layer in ("embed", "blocks.0", "unembed")
    )
    assert len(set(colors)) == 2
    assert colors[0] == colors[2] != colors[3]
    assert opacities == pytest.approx((0.5, 0.75, 1) * 2)
    losses = [scale * (1 + 3 / math.sqrt(100)) for scale in (1.4, 1.5, 1.45)]
    assert first[:3] == pytest.approx(
        [mean(size / loss for loss in losses) for size in (0.5, 1, 2)], rel=1e-5
    )


def test_a_run_is_hidden_everywhere_at_once(rungs: Page) -> None:
    """In all plots, samples and images; it can be shown again."""
    hidden = f"{ALL}('.plot')].map(plot => plot.data.map(trace => trace.visible === false))"
    parts = f"{ALL}('[data-group]')].filter(part => part.hidden).map(part => part.dataset.group)"
    rungs.evaluate("document.querySelectorAll('.chips input')[1].click()")
    assert rungs.evaluate(hidden) == hidden_if(False, True, False)
    assert rungs.evaluate(parts) == ["1", "1"]
    assert rungs.evaluate(f"{ALL}('#scores .toggle')].map(box => box.checked)") == [
        True,
        False,
        True,
    ]
    rungs.evaluate("document.querySelector('button[value=none]').click()")
    assert rungs.evaluate(hidden) == hidden_if(True, True, True)
    rungs.evaluate("document.querySelector('button[value=all]').click()")
    assert rungs.evaluate(hidden) == hidden_if(False, False, False)
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
    """The scoreboard still has a best loss that the curve skips; the axis is characters seen."""
    run = write_fake_run(tmp_path / "run")
    rows = [row for i in range(5000) for row in metric_rows(i + 1, 1.5)]
    rows[2 * 2504 + 1]["val/loss"] = 0.5
    write_csv(run / "metrics.csv", rows)
    page = open_report(browser, run, tmp_path / "report.html")
    for x in page.evaluate("curves.map(p => p.data[0].x)"):
        assert (len(x), x[0], x[-1]) == (report.MAX_POINTS, 256, 256 * 5000)
        assert x == sorted(set(x))
        assert 256 * 2505 not in x
    assert "0.5000" in page.evaluate("document.getElementById('scores').innerText")


def test_bold_is_what_compare_calls_better(
    seeds: Page, rungs: Page, browser: Chromium, tmp_path: Path
) -> None:
    """By the seeds that two configs share: ranges may overlap. A single seed is never bold."""
    bold = f"{ALL}('#scores .group')].map(body => body.querySelectorAll('b').length)"
    assert seeds.evaluate(bold) == [3, 0]
    assert rungs.evaluate(bold) == [0, 0, 0]
    a = {1: 1.4, 2: 1.6, 3: 1.8}
    rivals = {
        "paired": ({1: 1.44, 2: 1.65, 3: 1.85}, 3),
        "noisy": ({1: 1.81, 2: 1.82, 3: 2.9}, 0),  # no overlap, but no clear difference either
        "others": ({4: 2.4, 5: 2.65, 6: 2.85}, 0),
        "one_shared": ({3: 2.4, 5: 2.65, 6: 2.85}, 0),
    }
    for name, (b, expected) in rivals.items():
        write_seeds(tmp_path / name / "a", a)
        write_seeds(tmp_path / name / "b", b)
        page = open_report(browser, tmp_path / name, tmp_path / "report.html")
        assert page.evaluate(bold) == [expected, 0], name


def test_references_are_lines_that_can_be_switched_off_and_stretch_no_axis(rungs: Page) -> None:
    """Those within the range of the losses; the table has all."""
    shapes, extent = "plots[0].layout.shapes.map(s => s.y0)", "plots[0].layout.yaxis.range"
    low, high = rungs.evaluate(extent)
    lines = rungs.evaluate(shapes)
    assert sorted(lines) == [v for v in sorted(report.REFERENCES.values()) if low < v < high]
    assert 0 < len(lines) < len(report.REFERENCES)
    rungs.evaluate(set_control("marks", "false"))
    assert rungs.evaluate(shapes) == []
    assert rungs.evaluate(extent) == [low, high]
    rungs.evaluate(set_control("marks", "true"))
    rows = rungs.evaluate("document.querySelectorAll('#scores .references tr').length")
    assert rows == len(report.REFERENCES)


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


def test_the_slider_selects_the_same_time_of_all_samples_and_images(rungs: Page) -> None:
    seen = f"{ALL}('.frame:not([hidden]) > p')].map(step => step.innerText)"
    assert rungs.evaluate(seen) == ["step 1200"] * 6
    rungs.evaluate(f"{choose('.moment', '0')}.oninput({{target: box}})")
    assert rungs.evaluate(seen) == ["step 100"] * 6
    assert rungs.evaluate("document.querySelectorAll('.frame:not([hidden]) img').length") == 3
    rungs.evaluate(f"{choose('.moment', str(MAX_STEPS - 1))}.oninput({{target: box}})")


def test_hostile_text_is_shown_and_not_executed(browser: Chromium, tmp_path: Path) -> None:
    """In run names, settings, prompts, samples and the alphabet."""
    name = EVIL.replace("/", "|")  # of a folder
    for version, corpus in {"version_0": EVIL, "version_1": "b", "version_2": "b"}.items():
        run = write_fake_run(tmp_path / "runs" / name / version, text=EVIL + version)
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["data"]["corpus"] = corpus
        config["seed_everything"] = EVIL + version
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_csv(run / "symbols.csv", [{"step": 1, "symbol": EVIL[:-1], "count": 1, "loss": 1}])
    page = open_report(browser, tmp_path / "runs", tmp_path / "report.html")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert (page.requested_urls(), page.console_messages()) == ([], [])
    page.evaluate(set_control("singles", "true"))
    page.evaluate("for (const p of plots) Plotly.Fx.hover(p, [{curveNumber: 0, pointNumber: 0}])")
    for place, text in {
        "#scores td": name, "[data-frames] h3": name, ".chips": name, ".settings": EVIL,
        ".single td:last-child": EVIL, "pre": EVIL, "pre b": EVIL,
        "[data-key='val/loss'] .hoverlayer": name[:-1],
        "[data-key=symbols] .xaxislayer-above": EVIL[:-1],
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
    assert page.count_traces() == traces(2, bars=1)
    assert page.evaluate(f"[{ALL}('[data-frames]')].length, document.images.length]") == [1, 0]
    assert "started/version_0" in page.evaluate("document.getElementById('scores').innerText")
    page = open_report(browser, old, tmp_path / "report.html")
    assert page.console_messages() == []
    assert page.count_traces() == {key: n for key, n in traces(1, bars=0).items() if n}
    assert page.evaluate(f"{ALL}('h2')].map(heading => heading.innerText)") == SECTIONS[1:4]
