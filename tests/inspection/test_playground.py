"""The playground: its networks in JavaScript equal those of PyTorch; its page works alone."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import CHROMIUM, Chromium, Page, until
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import CONFIGS, small
from torch import nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.files import write_html
from lit_gpt_scratch.generation import SamplingSettings, next_distribution
from lit_gpt_scratch.generation.sampling import input_start
from lit_gpt_scratch.inspection import attention, logit_lens, playground
from lit_gpt_scratch.inspection.ablation import ablate_head, ablate_layer
from lit_gpt_scratch.inspection.laws import random_ids, with_random_weights
from lit_gpt_scratch.models import (
    GPT,
    AttentionLM,
    Bigram,
    Ensemble,
    MeanAttention,
    ModernGPT,
    MultiHeadAttention,
    RotaryAttention,
)
from lit_gpt_scratch.training import LitCharLM

NODE = shutil.which("node")
ALPHABET = "".join(sorted("\n !<&>ABab"))
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
FOLDER = resources.files(playground)


def make_model(net: Any, context: int = 8, seed: int = 0) -> LitCharLM:
    """Return a model with random weights."""
    torch.manual_seed(seed)
    model = LitCharLM(net=net, alphabet=ALPHABET, context=context)
    model.net = with_random_weights(model.net)
    return model.eval()


def run_js(script: str, model: LitCharLM, float32: bool = True, **values: Any) -> Any:
    """Return what an asynchronous JavaScript function returns, with the model and the values."""
    if not NODE:
        pytest.skip("needs Node: it is not installed")
    sources = [(FOLDER / name).read_text("utf-8") for name in ("network.js", "model.js")]
    main = f"""
    const {{description, values}} = JSON.parse(require("fs").readFileSync(0, "utf8"));
    const run = async (model, values) => {{ {script} }};
    const found = Model.open(description).then(model => run(model, values));
    found.then(found => console.log(JSON.stringify(found)));
    """
    given = {"description": playground.describe(model, "m", float32), "values": values}
    done = subprocess.run(
        [NODE, "-e", "\n".join([*sources, main])],
        input=json.dumps(given), capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)


READ = """
    const windows = await model.read(values.ids, values.off ?? []);
    const logits = values.ids.map((_, position) => [...model.logits(windows, position)]);
"""


@torch.no_grad()
def logits_of(model: LitCharLM, ids: list[int]) -> torch.Tensor:
    """Return logits (T, V); each position reads what generation would give it."""
    starts = [input_start(i + 1, model.context) for i in range(len(ids))]
    rows = [model.net(torch.tensor([ids[s : i + 1]]))[0, -1] for i, s in enumerate(starts)]
    return torch.stack(rows)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_logits_of_every_config_equal_those_of_pytorch(config: Path) -> None:
    """The text is longer than the context."""
    model = small(config)
    model.net = with_random_weights(model.net)
    ids = random_ids(len(model.tokenizer), 21).tolist()
    found = torch.tensor(run_js(READ + "return logits;", model, ids=ids))
    torch.testing.assert_close(found, logits_of(model, ids), atol=1e-4, rtol=1e-5)


@st.composite
def networks(draw: st.DrawFn) -> Any:
    heads = draw(st.integers(1, 4))
    width = heads * 2 * draw(st.integers(1, 5))
    kind = draw(st.sampled_from([GPT, ModernGPT]))
    attention = partial(RotaryAttention if kind is ModernGPT else MultiHeadAttention, heads=heads)
    net = partial(kind, layers=draw(st.integers(1, 3)), width=width, attention=attention)
    return partial(Ensemble, net=net, size=2) if draw(st.booleans()) else net


@settings(max_examples=10, deadline=None)
@given(net=networks(), context=st.integers(1, 12), length=st.integers(1, 30))
def test_logits_of_networks_of_any_size_equal_those_of_pytorch(
    net: Any, context: int, length: int
) -> None:
    model = make_model(net, context)
    ids = random_ids(len(ALPHABET), length).tolist()
    found = torch.tensor(run_js(READ + "return logits;", model, ids=ids))
    torch.testing.assert_close(found, logits_of(model, ids), atol=1e-4, rtol=1e-4)


NETS = {
    "mean": partial(AttentionLM, attention=MeanAttention, width=12),
    "heads": partial(AttentionLM, attention=partial(MultiHeadAttention, heads=3), width=12),
    "gpt": partial(GPT, layers=2, width=16),
    "modern": partial(ModernGPT, layers=2, width=16),
}


@pytest.mark.parametrize("name", NETS)
def test_attention_weights_and_the_logit_lens_equal_those_of_inspection(name: str) -> None:
    model, text = make_model(NETS[name]), "aB <b"
    look = """
        const trace = windows[0].trace, {attentions, stages, width} = model.network;
        const T = values.ids.length, C = model.context;
        const count = length => [...Array(length).keys()];
        const weights = attentions.map(({name, heads}) => count(heads).map(h => count(T).map(t => {
            const start = (t * heads + h) * C;
            return [...trace.rows.get(`${name}.weights`).slice(start, start + T)];
        })));
        const row = (name, t) => trace.rows.get(name).slice(t * width, (t + 1) * width);
        const guess = (name, t) => [...softmax(model.network.unembed(row(name, t), 1))];
        const lens = stages.map(name => count(T).map(t => guess(name, t)));
        return {names: attentions.map(({name}) => name), weights, lens, stages};
    """
    found = run_js(READ + look, model, ids=model.tokenizer.encode(text).tolist())
    expected = attention(model, text)
    assert found["names"] == [layer for layer, _ in expected]
    for weights, (_, reference) in zip(found["weights"], expected, strict=True):
        torch.testing.assert_close(torch.tensor(weights), reference, atol=1e-5, rtol=0)
    lens = logit_lens(model, text)
    assert found["stages"] == lens.stages
    torch.testing.assert_close(torch.tensor(found["lens"]), lens.probabilities, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_parts_that_are_switched_off_equal_ablated_ones(name: str) -> None:
    model = make_model(NETS[name])
    ids = random_ids(len(ALPHABET), 8).tolist()
    layer = "blocks.1" if hasattr(model.net, "blocks") else "attention"
    head = f"{layer}.attention.0" if hasattr(model.net, "blocks") else "attention.0"
    index = int(layer == "blocks.1")
    for off, ablated in ((layer, ablate_layer(model, index)), (head, ablate_head(model, index, 0))):
        found = torch.tensor(run_js(READ + "return logits;", model, ids=ids, off=[off]))
        with ablated:
            torch.testing.assert_close(found, logits_of(model, ids), atol=1e-4, rtol=1e-4)


def test_what_is_typed_later_changes_nothing_before_it_and_costs_its_own_positions() -> None:
    """Reading in pieces, and after an edit in the middle, equals reading anew."""
    model = make_model(NETS["modern"])
    first, second = (random_ids(len(ALPHABET), 20, seed=s).tolist() for s in (1, 2))
    texts = [first[:3], first[:7], first, first[:5] + second[:9], second[:2]]
    pieces = """
        const found = [];
        for (const ids of values.texts) {
            const windows = await model.read(ids);
            const anew = await Model.open(description);
            const again = await anew.read(ids);
            const both = i => [[...model.logits(windows, i)], [...anew.logits(again, i)]];
            found.push(ids.map((_, i) => both(i)));
        }
        let computed = 0;
        const {forward} = model.network;
        model.network.forward = (ids, trace) => {
            computed += ids.length;
            return forward.call(model.network, ids, trace);
        };
        await model.read(values.texts.at(-1));
        await model.read([...values.texts.at(-1), 1]);
        return {found, computed};
    """
    result = run_js(pieces, model, texts=texts)
    for rows in result["found"]:
        for cached, anew in rows:
            assert cached == pytest.approx(anew, abs=1e-6)
    assert result["computed"] == 1


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_distributions_equal_those_of_predict(values: dict[str, Any]) -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    names = {"top_k": "topK", "top_p": "topP", "min_p": "minP"}
    script = "return values.logits.map(row => [...nextDistribution(row, values.settings)]);"
    changed = {names.get(name, name): value for name, value in values.items()}
    found = run_js(script, make_model(Bigram), logits=logits.tolist(), settings=changed)
    expected = next_distribution(logits, SamplingSettings(**values))
    found = torch.tensor(found, dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_greedy_text_equals_that_of_predict(name: str) -> None:
    model = make_model(NETS[name])
    prompt = model.tokenizer.encode("aB")
    write = """
        const ids = [...values.prompt];
        for (let i = 0; i < 30; i++) {
            const logits = model.logits(await model.read(ids), ids.length - 1);
            ids.push(draw(nextDistribution(logits, {temperature: 0}), .5));
        }
        return ids.map(id => model.alphabet[id]).join("");
    """
    greedy = SamplingSettings(max_new_tokens=30, temperature=0)
    assert run_js(write, model, prompt=prompt.tolist()) == model.generate(prompt[None], greedy)[0]


def test_weights_of_16_bits_change_logits_little() -> None:
    model = make_model(NETS["modern"])
    ids = random_ids(len(ALPHABET), 8).tolist()
    found = torch.tensor(run_js(READ + "return logits;", model, False, ids=ids))
    expected = logits_of(model, ids)
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_stored_weights_are_within_half_a_step_and_infinite_ones_are_refused() -> None:
    """A step is 1/200 of a matrix' size, or what lets the largest weight fit into 16 bits."""
    model = make_model(NETS["gpt"])
    with torch.no_grad():
        model.net.embed.character.weight[0, 0] = 1000.0
        model.net.unembed[0].weight.zero_()
    script = """
        const weights = Object.entries(await unpackWeights(description));
        return Object.fromEntries(weights.map(([key, {data}]) => [key, [...data]]));
    """
    rounded, exact = (run_js(script, model, float32) for float32 in (False, True))
    for key, weight in model.net.state_dict().items():
        assert exact[key] == weight.flatten().tolist()
        size = float(weight.square().mean().sqrt()) / 200 if weight.dim() > 1 else 0.0
        step = max(size, float(weight.abs().max()) / 32767)
        found = torch.tensor(rounded[key], dtype=torch.float32).view(weight.shape)
        torch.testing.assert_close(found, weight, atol=step / 2 * 1.0001, rtol=0)
    model.net.unembed[1].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="m has weights that are not finite numbers"):
        playground.describe(model, "m")


def test_python_and_javascript_know_the_same_classes() -> None:
    source = (FOLDER / "network.js").read_text("utf-8")
    for name in ("NETWORKS", "ATTENTIONS"):
        (listed,) = re.findall(rf"^const {name} = {{(.+)}};$", source, re.MULTILINE)
        known = [entry.partition(":")[0].strip() for entry in listed.split(",")]
        assert known == [*getattr(playground, name)]


class OwnAttention(MultiHeadAttention):
    """An attention that the page does not know."""


@pytest.mark.parametrize("net", [partial(GPT, attention=OwnAttention), nn.Identity])
def test_an_unknown_class_is_refused_by_name(net: Any) -> None:
    model = make_model(GPT)
    spec = LitCharLM(net=partial(GPT, attention=OwnAttention), alphabet="ab", context=4).hparams
    model.hparams["net"] = spec["net"] if net is not nn.Identity else {"class_path": "my.Own"}
    with pytest.raises(InputError, match=r"m uses .*Own.*, which the playground does not know"):
        playground.describe(model, "m")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of three models."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: it is not installed")
    folder = tmp_path_factory.mktemp("playground")
    models = {"bigram": Bigram, "gpt": NETS["gpt"], EVIL: NETS["modern"]}
    described = [playground.describe(make_model(net), name) for name, net in models.items()]
    write_html(
        folder / "p.html", "playground", lambda: playground.render_page(described, "aB b", 2)
    )
    browser = Chromium(folder / "profile")
    opened = Page(browser, folder / "p.html")
    opened.evaluate(READY)
    yield opened
    browser.close()


READY = until("answers.ladder")

LINK_CHANGED = "new Promise(f => setTimeout(f, 400))"  # it changes 200 ms after the last change


def redo(action: str) -> str:
    """Return JavaScript that does something, and waits until the page has read the text anew."""
    return f"answers.ladder = null; {action}; {READY}"


@pytest.fixture
def notebook_output(page: Page, tmp_path: Path) -> Page:
    """What `show` returns, in the HTML of a notebook."""
    models = {"bigram": make_model(Bigram), EVIL: make_model(NETS["gpt"])}
    shown = playground.show(models, "aB <b>", height=600)
    (tmp_path / "notebook.html").write_text(
        f"<!doctype html><body>{shown._repr_html_()}", encoding="utf-8"
    )
    return Page(page.browser, tmp_path / "notebook.html")


def test_a_notebook_shows_the_page_at_the_text_that_it_gives(notebook_output: Page) -> None:
    inside = "document.querySelector('iframe').contentDocument"
    rows = f"{inside}.querySelectorAll('#ladder tbody tr')"
    notebook_output.evaluate(until(f"{rows}.length == 2"))
    assert notebook_output.evaluate(f"{inside}.querySelector('#text').value") == "aB <b>"
    chosen = f"{inside}.querySelector('#models input:checked').parentElement.textContent"
    assert notebook_output.evaluate(chosen) == EVIL
    assert notebook_output.evaluate("document.querySelector('iframe').clientHeight") == 600
    assert notebook_output.evaluate("window.pwned ?? 0") == 0
    assert notebook_output.console_messages() == []
    assert {url.partition(":")[0] for url in notebook_output.requested_urls()} <= {"blob"}


def test_show_needs_a_model_and_its_text_for_terminals_names_the_models() -> None:
    assert "Playground of Bigram" in repr(playground.show(make_model(Bigram)))
    with pytest.raises(InputError, match="show needs a model"):
        playground.show({})


def test_the_page_needs_nothing_but_its_own_worker(page: Page) -> None:
    assert {url.partition(":")[0] for url in page.requested_urls()} <= {"blob"}
    assert page.console_messages() == []
    refused = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert page.evaluate(refused) == "refused"
    page.browser.events.clear()  # the refusal was logged


def test_what_is_typed_is_shown_as_text_and_unknown_characters_are_named(page: Page) -> None:
    page.evaluate(redo(f"state.text = {EVIL!r}; readText()"))
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert EVIL in page.evaluate("byId('surprise').textContent").replace("⏎", "")
    assert "was trained without" in page.evaluate("byId('about').textContent")
    page.evaluate(redo("state.text = 'aB b'; readText()"))


def test_every_panel_follows_the_position(page: Page) -> None:
    page.evaluate(redo("changeModel(1)"))
    shown = "[byId('position'), byId('bars'), byId('reads'), byId('lens')].map(p => p.innerHTML)"
    before = page.evaluate(shown)
    page.evaluate("choose(1); new Promise(f => setTimeout(f, 300))")
    after = page.evaluate(shown)
    assert all(one != other for one, other in zip(before, after, strict=True))
    key = "byId('surprise').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    page.evaluate(key)
    assert page.evaluate("state.position") == 2


def test_a_part_that_is_switched_off_changes_the_loss(page: Page) -> None:
    page.evaluate(redo("switchPart('blocks.0.attention', false)"))
    assert "Without blocks.0 (attention)" in page.evaluate("byId('cost').textContent")
    page.evaluate(redo("byId('restore').click()"))
    assert "All parts are on" in page.evaluate("byId('cost').textContent")


def test_text_is_written_character_by_character_with_alternatives(page: Page) -> None:
    """The same seed writes the same text."""
    texts = []
    for _ in range(2):
        page.evaluate("clearWritten(); state.speed = 300; byId('write').click()")
        page.evaluate(until("written.length >= 12"))
        page.evaluate("byId('write').click(); showAlternatives(3)")
        texts.append(page.evaluate("written.slice(0, 12).map(w => w.character).join('')"))
    assert texts[0] == texts[1]
    assert "was drawn from:" in page.evaluate("byId('alternatives').textContent")


def test_the_link_keeps_the_state(page: Page) -> None:
    page.evaluate(redo("changeModel(0)"))
    page.evaluate(f"choose(2); {LINK_CHANGED}")
    kept = page.evaluate("location.hash")
    page.evaluate(redo("changeModel(1)"))
    page.evaluate(LINK_CHANGED)
    page.evaluate(redo(f"location.hash = {kept!r}"))
    assert page.evaluate("[state.model, state.position]") == [0, 2]
    assert page.console_messages() == []


def test_a_link_to_any_model_opens_that_model(page: Page) -> None:
    """Without a hash in the link, this is the model that was written last."""
    for index in range(3):
        page.evaluate(redo(f"changeModel({index})"))
        page.evaluate(LINK_CHANGED)
        page.call("Page.reload")
        page.evaluate("document.readyState == 'complete' || new Promise(f => window.onload = f)")
        page.evaluate(READY)
        assert page.evaluate("state.model") == index
