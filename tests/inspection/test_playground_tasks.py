"""A lesson with the playground: a learner does five tasks in it, with a mouse and a keyboard.

The learner finds controls by the words on the screen, and knows nothing of the page's code.
"""

import json
import random
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from chromium import CHROMIUM, Chromium, Page

from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.files import write_html
from lit_gpt_scratch.inspection import playground
from lit_gpt_scratch.models import GPT, AttentionLM, Bigram, FusedAttention, MeanAttention
from lit_gpt_scratch.training import AdamW, LitCharLM, WarmupCosine

pytestmark = pytest.mark.slow
SYMBOLS = "\n aehostw"

# Return the visible controls of a panel (or of the page) with the words that name them.
CONTROLS = """
const panelOf = title => [...document.querySelectorAll('section, dialog[open]')]
    .find(panel => panel.querySelector('h2').innerText === title);
const words = e => e.labels?.length ? e.labels[0].innerText : e.innerText || e.ariaLabel || '';
const controls = panel => [...(panel ? panelOf(panel) : document)
    .querySelectorAll('button, input, select, textarea')]
    .filter(e => e.checkVisibility() && !e.disabled)
    .map(e => ({element: e, words: words(e).replaceAll(/\\s+/g, ' ').trim()}));
const named = (name, panel) => controls(panel).find(({words}) => words.startsWith(name))?.element;
const cells = box => [...box.querySelectorAll('[data-position]')];
"""


class Learner:
    """Uses an open page by its visible words, with real events of a mouse and a keyboard."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def see(self, expression: str) -> Any:
        return self.page.evaluate(f"(() => {{ {CONTROLS} return {expression} }})()")

    def read(self, panel: str) -> str:
        """Return the visible text of a panel."""
        return self.see(f"panelOf({panel!r}).innerText")

    def wait_for(self, panel: str, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Return the first place where the visible text of a panel matches."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.read(panel))):
            assert time.monotonic() < end, f"{panel} never shows {pattern!r}: {self.read(panel)}"
            time.sleep(0.05)
        return match

    def mouse(self, element: str, click: bool = True) -> None:
        """Move the mouse to an element that nothing covers; click on it."""
        place = self.see(f"""(e => {{
            e.scrollIntoView({{block: 'center', behavior: 'instant'}});
            const [box] = e.getClientRects(), x = box.x + box.width / 2; // its first line
            const y = box.y + box.height / 2, found = document.elementFromPoint(x, y);
            return e.contains(found) ? {{x, y}} : found.outerHTML;
        }})({element})""")
        assert isinstance(place, dict), f"{element} is covered by {place}"
        kinds = ["mouseMoved", "mousePressed", "mouseReleased"] if click else ["mouseMoved"]
        for kind in kinds:
            button = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.page.call("Input.dispatchMouseEvent", type=kind, **place, **button)

    def click(self, name: str, panel: str = "") -> None:
        found = self.see(f"controls({panel!r}).map(c => c.words)")
        assert any(words.startswith(name) for words in found), f"no {name!r} in {found}"
        self.mouse(f"named({name!r}, {panel!r})")

    def press(self, key: str, code: int = 0, modifiers: int = 0) -> None:
        options: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        options |= {"modifiers": modifiers, "commands": ["selectAll"] if modifiers else []}
        text = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        self.page.call("Input.dispatchKeyEvent", type="keyDown", **options, **text)
        self.page.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def set_slider(self, name: str, panel: str, key: str) -> None:
        """Set a slider to its least or its largest value."""
        self.click(name, panel)
        self.press(key, {"Home": 36, "End": 35}[key])

    def replace_text(self, text: str) -> None:
        self.click("text", "Text")
        self.press("a", 65, modifiers=2)
        self.page.call("Input.insertText", text=text)
        self.wait_for("Next character", rf"after “{text[-11:]}”, position {len(text)}\b")

    def point_at(self, position: int) -> None:
        """Point at a character of the coloured text."""
        self.mouse(f"cells(panelOf('Text'))[{position}]", click=False)
        self.wait_for("Next character", rf"position {position + 1}\b")

    def text(self) -> str:
        return self.see("named('text', 'Text').value")

    def bars(self) -> list[list[str]]:
        """Return the three likeliest characters with their percentages, for each model shown."""
        rows = "[...table.tBodies[0].rows].slice(0, 3).map(row => row.innerText.trim())"
        tables = "[...panelOf('Next character').querySelectorAll('table')]"
        return self.see(f"{tables}.map(table => {rows})")

    def ladder(self) -> dict[str, float]:
        """Return the mean loss of each model."""
        self.wait_for("The ladder", "nats")
        rows = self.see("[...panelOf('The ladder').querySelectorAll('tbody tr')]"
                        ".map(row => row.innerText)")  # fmt: skip
        return {row.split()[0]: float(re.search(r"([\d.]+) nats", row)[1]) for row in rows}  # type: ignore[index]

    def begin(self, task: str) -> None:
        self.click(task, "Five tasks")
        assert self.read(task)  # the guide says what to do
        self.settle()

    def settle(self) -> None:
        """Wait until the page has stopped changing, as a learner does who reads."""
        before = ""
        while (now := self.see("document.body.innerText")) != before:
            before = now
            time.sleep(0.3)


# Each task uses what its guide names, and returns what a learner sees.


def find_the_head_that_reads_the_previous_character(learner: Learner) -> dict[str, Any]:
    learner.begin("Find a head that reads the previous character")
    learner.wait_for("Attention", r"previous")
    labels = learner.see("[...panelOf('Attention').querySelectorAll('button')].map(words)")
    found = [re.fullmatch(r"previous\s+([\d.]+) %", label) for label in labels]
    share, head = max((float(match[1]), i) for i, match in enumerate(found) if match)
    button = f"[...panelOf('Attention').querySelectorAll('button')][{head}]"
    learner.mouse(button)
    read = []
    for position in (5, 9, 14):
        learner.mouse(f"cells(panelOf('Attention')).find(c => c.dataset.position == {position})")
        learner.wait_for("Next character", rf"position {position + 1}\b")
        shades = learner.see(
            "cells(panelOf('Attention')).map(cell => [Number(cell.dataset.position), "
            "Number(getComputedStyle(cell).backgroundColor.match(/[\\d.]+(?=\\)$)/)[0])])"
        )
        read.append(position - max(shades, key=lambda shade: shade[1])[0])
    return {"head": learner.see(f"{button}.title"), "share": share, "reads back": read}


def see_what_the_bigram_cannot_know(learner: Learner) -> dict[str, Any]:
    learner.begin("See what the bigram cannot know")
    text = learner.text()
    pairs = [(i, j) for j in range(2, len(text)) for i in range(1, j)
             if text[i] == text[j] and text[i - 1] != text[j - 1]]  # fmt: skip
    seen = []
    for position in pairs[len(pairs) // 2]:
        learner.point_at(position)
        seen.append(learner.bars())
    return {"bigram": [bars[0] for bars in seen], "other": [bars[1] for bars in seen]}


def see_where_the_mean_fails(learner: Learner) -> dict[str, Any]:
    learner.begin("See where the mean fails")
    losses, seen = learner.ladder(), []
    for word in ("was", "saw"):
        learner.replace_text(word)
        seen.append(learner.bars())
    return {"losses": losses, "mean": [b[0] for b in seen], "bigram": [b[1] for b in seen]}


def switch_off_the_most_important_head(learner: Learner) -> dict[str, Any]:
    learner.begin("Switch off the most important head")
    panel = "Take it apart"
    learner.click("cost of each part", panel)
    pattern = r"most important head for this text: (\S+) \((head \d+)\).*?by (\S+) nats"
    layer, head, cost = learner.wait_for(panel, pattern).groups()
    shown = learner.see(f"controls({panel!r}).map(c => c.words)")
    costs = [
        float(words.split()[-1].replace("\N{MINUS SIGN}", "-"))
        for words in shown
        if "head" in words
    ]
    rows = f"[...panelOf({panel!r}).querySelectorAll('fieldset')]"
    row = f"{rows}.find(row => row.innerText.startsWith({layer!r}))"
    box = f"[...{row}.querySelectorAll('input')].find(box => words(box).startsWith({head!r}))"
    learner.mouse(box)
    without = learner.wait_for(panel, r"Without (\S+ \(head \d+\)): .*? (\S+) against")
    text = learner.wait_for("Text", r"1 parts? off: mean [\d.]+ nats")[0]
    learner.click("switch all on", panel)
    learner.wait_for(panel, "All parts are on")
    return {"head": f"{layer} ({head})", "cost": cost, "costs": costs,
            "without": without.groups(), "text": text}  # fmt: skip


def make_it_write_in_a_loop(learner: Learner, seconds: float = 60) -> dict[str, Any]:
    learner.begin("Make it write in a loop")
    learner.set_slider("temperature", "Next character", "Home")
    learner.set_slider("characters per second", "Write", "End")
    while "It repeats" not in learner.read("Write"):  # it may go on in another way before it stops
        learner.click("write", "Write")
        learner.wait_for("Write", "It repeats", seconds)
        learner.click("stop", "Write")
    note = learner.wait_for("Write", r"the last (\d+) characters are the same as the (\d+) before")
    written = learner.see("cells(panelOf('Write')).map(cell => cell.innerText).join('')")
    learner.mouse("cells(panelOf('Write')).at(-1)", click=False)
    drawn = learner.wait_for("Write", r"was drawn from: .*")[0]
    return {
        "length": int(note[1]),
        "drawn": drawn,
        "written": written.replace("⏎\n", "⏎").replace("⏎", "\n"),
    }


def play(seed: int, length: int = 20_000) -> str:
    """Return a random text. Most characters follow from the character two places before.

    Some follow from the last character. So a model with attention learns a head that reads the
    previous character, and a bigram has a high loss.
    """
    draw = random.Random(seed)
    one, other = draw.sample(SYMBOLS, 9), draw.sample(SYMBOLS, 9)
    far = dict(zip(one, one[1:] + one[:1], strict=True))  # a cycle through all symbols
    near = dict(zip(one, other, strict=True))
    text = "to"
    for _ in range(length):
        kind = draw.random()
        next_character = far[text[-2]] if kind < 0.6 else near[text[-1]]
        text += next_character if kind < 0.85 else draw.choice(SYMBOLS)
    return text


TWO_HEADS = partial(FusedAttention, heads=2)
NETS: dict[str, tuple[Any, int, float]] = {  # with steps and learning rate
    "bigram": (Bigram, 200, 0.05),
    "mean": (partial(AttentionLM, attention=MeanAttention), 200, 0.02),
    "gpt": (partial(GPT, layers=2, width=32, attention=TWO_HEADS), 400, 0.01),
}  # fmt: skip


def train(name: str, corpus: Path, seed: int) -> LitCharLM:
    net, steps, lr = NETS[name]
    pl.seed_everything(seed)
    data = CharDataModule(str(corpus), context=16, batch_size=32, seed=seed)
    model = LitCharLM(
        net, partial(AdamW, lr=lr), WarmupCosine, alphabet=data.alphabet, context=data.context
    )
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, data)
    return model.eval()


def write_page(folder: Path, seed: int) -> Path:
    """Train a small ladder, and write its page."""
    text, path = play(seed), folder / "lesson.html"
    (folder / "play.txt").write_text(text, "utf-8", newline="")
    models = {name: train(name, folder / "play.txt", seed) for name in NETS}
    described = [playground.describe(model, name) for name, model in models.items()]
    write_html(path, "playground", lambda: playground.render_page(described, text[100:148]))
    return path


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chromium, Path]]:
    if not CHROMIUM:
        pytest.skip("needs Chromium: it is not installed")
    folder = tmp_path_factory.mktemp("lesson")
    path, browser = write_page(folder, seed=1), Chromium(folder / "profile")
    yield browser, path
    browser.close()


@pytest.fixture
def learner(lesson: tuple[Chromium, Path]) -> Iterator[Learner]:
    """A learner who has just opened the page."""
    learner = Learner(Page(*lesson))
    learner.wait_for("The ladder", "disagree")
    yield learner
    assert learner.page.console_messages() == []


def test_the_head_that_reads_the_previous_character_is_found(learner: Learner) -> None:
    seen = find_the_head_that_reads_the_previous_character(learner)
    assert seen["share"] > 80
    assert seen["reads back"] == [1, 1, 1]


def test_the_bigram_says_the_same_after_the_same_character(learner: Learner) -> None:
    seen = see_what_the_bigram_cannot_know(learner)
    assert seen["bigram"][0] == seen["bigram"][1]
    assert seen["other"][0] != seen["other"][1]


def test_the_mean_says_the_same_whatever_the_order(learner: Learner) -> None:
    seen = see_where_the_mean_fails(learner)
    assert seen["mean"][0] == seen["mean"][1]
    assert seen["bigram"][0] != seen["bigram"][1]
    assert seen["losses"]["mean"] > seen["losses"]["gpt"] + 0.2


def test_the_most_important_head_is_named_and_costs_what_was_said(learner: Learner) -> None:
    seen = switch_off_the_most_important_head(learner)
    assert seen["without"] == (seen["head"], seen["cost"])
    assert float(seen["cost"]) == max(seen["costs"]) > 0.3


def test_greedy_writing_ends_in_a_loop(learner: Learner) -> None:
    seen = make_it_write_in_a_loop(learner)
    n, written = seen["length"], seen["written"]
    assert n > 1
    assert written[-n:] == written[-2 * n : -n]
    assert re.fullmatch(r"was drawn from: . 100 %", seen["drawn"])


def test_every_control_has_a_name_for_screen_readers(learner: Learner) -> None:
    learner.begin("Find a head that reads the previous character")  # its model has all controls
    learner.wait_for("Attention", "previous")
    nodes = learner.page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "checkbox", "radio", "slider", "textbox", "combobox", "spinbutton", "image"}
    roles |= {"application", "dialog", "radiogroup", "Canvas"}
    found = [(n["role"]["value"], n["name"].get("value", "")) for n in nodes if not n["ignored"]
             and n["role"]["value"] in roles]  # fmt: skip
    assert len(found) > 40
    assert [role for role, name in found if not name.strip()] == []


def test_the_keyboard_alone_works(learner: Learner) -> None:
    """Tab reaches every control. A control that is used keeps the focus. Escape ends a task."""
    focused = "controls().find(c => c.element === document.activeElement)?.words"
    learner.press("Tab", 9)
    for _ in range(2):
        learner.press("ArrowRight", 39)
        learner.settle()
    assert learner.see(focused) == "gpt"
    reached: list[str | None] = []
    while len(reached) < 80:
        learner.press("Tab", 9)
        reached.append(learner.see(focused))
        if reached[-1] == "head 0":
            learner.press(" ", 32)
            learner.wait_for("Take it apart", r"Without blocks.\d \(head 0\)")
            assert learner.see(focused) == "head 0"
            learner.press(" ", 32)
            learner.wait_for("Take it apart", "All parts are on")
        if reached[-1] == "Make it write in a loop":
            learner.press("Enter", 13)
            learner.settle()
            assert learner.see(focused) == "done"
            learner.press("Escape", 27)
            assert learner.see(focused) == "Make it write in a loop"
    everything = learner.see("controls().filter(c => c.element.type !== 'radio').map(c => c.words)")
    assert set(everything) <= set(reached)


@pytest.mark.parametrize(
    "text", ["the toast " * 200, "<b>" + "a" * 1997], ids=["lines", "one word"]
)
def test_a_narrow_screen_needs_no_sideways_scrolling(learner: Learner, text: str) -> None:
    screen = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    learner.page.call("Emulation.setDeviceMetricsOverride", **screen)
    learner.click("text", "Text")
    learner.press("a", 65, modifiers=2)
    learner.page.call("Input.insertText", text=text)
    learner.wait_for("Text", "2000 characters")
    learner.wait_for("The ladder", "nats")
    boxes = "[document.documentElement, ...document.querySelectorAll('main div, main table')]"
    wide = f"{boxes}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML)"
    assert learner.see(wide) == []


if __name__ == "__main__":  # do the tasks in a page: python test_playground_tasks.py PAGE.html
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        opened = Chromium(Path(scratch))
        for steps in (find_the_head_that_reads_the_previous_character,
                      see_what_the_bigram_cannot_know, see_where_the_mean_fails,
                      switch_off_the_most_important_head, make_it_write_in_a_loop):  # fmt: skip
            someone = Learner(Page(opened, Path(sys.argv[1]).resolve()))
            someone.wait_for("The ladder", "disagree")
            print(steps.__name__, json.dumps(steps(someone), ensure_ascii=False), flush=True)
        opened.close()
