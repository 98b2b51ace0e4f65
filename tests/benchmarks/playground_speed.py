"""A part of `make bench`: the size and the speed of the playground, in headless Chromium."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import CHROMIUM, QUICK, Chromium, Figures, Page, fit, median_and_range, until
from tqdm import tqdm

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.inspection.laws import with_random_weights
from lit_gpt_scratch.inspection.playground import describe, render_page
from lit_gpt_scratch.runs.comparison import markdown_table

# The seven models of `make ladder`; the page begins with the last.
MODELS = (
    "bigram", "mean", "single_head", "multi_head", "transformer", "gpt_cpu_classic", "gpt_cpu",
)  # fmt: skip
# Each text begins with another character than the text before it. So no result can be reused.
SCRIPT = """(async () => {
  const wait = done => new Promise(resolve => {
    const timer = setInterval(() => { if (done()) { clearInterval(timer); resolve(); } }, 5);
  });
  const index = state.model, letters = "abcdefghijklmnopqrstuvwxyz".repeat(10);
  const read = text => ask("read 0", {name: "read", index, text, off: []});
  const milliseconds = async (texts, from = performance.now()) => {
    for (const text of texts) await read(text);
    return (performance.now() - from) / texts.length;
  };
  const texts = [...Array(10).keys()].map(i => letters.slice(i, i + 256));
  await milliseconds(texts.slice(5)); // compiles the code
  const whole = await milliseconds(texts.slice(0, 5));
  const prefix = texts[0].slice(0, 200), rest = [...Array(50).keys()];
  await read(prefix);
  const typed = await milliseconds(rest.map(i => texts[0].slice(0, 201 + i)));
  state.speed = 1e6; // no pauses
  Object.assign(state, {text: "ROMEO:"});
  byId("write").click();
  const from = performance.now();
  await wait(() => written.length >= 600 || performance.now() - from > 20000);
  const speed = 1000 * written.length / (performance.now() - from);
  byId("write").click();
  return {whole, typed, speed};
})()"""

# Types, points and writes as a user does. The browser reports the tasks of the page over 50 ms.
BLOCKED = """(async () => {
  const pause = ms => new Promise(resolve => setTimeout(resolve, ms)), tasks = [];
  new PerformanceObserver(list => tasks.push(...list.getEntries())).observe({type: "longtask"});
  for (let i = 0; i < 40; i++) {
    byId("text").value += "What is the name? "[i % 18];
    byId("text").dispatchEvent(new Event("input"));
    await pause(80);
  }
  for (let i = 0; i < 40; i++) { choose(i); await pause(60); }
  state.speed = 300;
  byId("write").click();
  await pause(3000);
  byId("write").click();
  await pause(500);
  return tasks.length;
})()"""


@contextmanager
def one_core() -> Iterator[None]:
    """In this `with` block, new processes run on one core, where the system can do that."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def run(browser: Chromium, file: Path, script: str) -> Any:
    """Return what a script returns in the page, and close the browser."""
    page = Page(browser, file)
    page.evaluate(until("answers.ladder && answers.heads"))
    result = page.evaluate(script)
    browser.close()
    return result


def playground(_peer: object, count: int) -> tuple[Figures, str]:
    """Size and speed of the playground: all rungs in a page, gpt_cpu runs, Chromium on one core."""
    if not CHROMIUM:
        raise InputError("the part playground needs Chromium: install it, or leave it out.")
    descriptions = []
    for name in MODELS:
        model = fit(name, *QUICK, "--trainer.max_steps=1").model
        model.net = with_random_weights(model.net)  # untrained weights compress too well
        descriptions.append(describe(model, name))
    names = (
        "MB of the file",
        "ms for 256 characters",
        "ms for a typed one",
        "characters/s written",
        "tasks of the page over 50 ms (on two cores)",
    )
    found: Figures = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "playground.html"
        file.write_text(render_page(descriptions, "ROMEO:", len(MODELS) - 1), encoding="utf-8")
        for number in tqdm(range(count), desc="playground", leave=False):
            with one_core():
                browser = Chromium(Path(folder) / f"profile {number}")
            measured = run(browser, file, SCRIPT)
            blocked = run(Chromium(Path(folder) / f"another {number}"), file, BLOCKED)
            speeds = (measured[k] for k in ("whole", "typed", "speed"))
            row = [file.stat().st_size / 1e6, *speeds, blocked]
            for name, value in zip(names, row, strict=True):
                found[name].append(value)
    table = [[name, median_and_range(values)] for name, values in found.items()]
    return found, markdown_table([["playground", ""], *table])
