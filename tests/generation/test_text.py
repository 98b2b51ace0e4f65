"""Texts: where a stop string ends them, and which pieces of them are passed on when."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import random_ids, with_random_weights

from lit_gpt_scratch.data import CharTokenizer
from lit_gpt_scratch.generation import SamplingSettings, default_prompt
from lit_gpt_scratch.models import GPT
from lit_gpt_scratch.training import LitCharLM

PROMPTS = st.text("\nab", min_size=1, max_size=9)
STOPS = st.text("\nab", max_size=3)
SHORT = SamplingSettings(max_new_tokens=20, seed=3)


@pytest.fixture(scope="module")
def model() -> LitCharLM:
    """A model with an alphabet so small that it soon draws any stop string."""
    model = LitCharLM(partial(GPT, layers=1, width=16), alphabet="\nab", context=6)
    model.net = with_random_weights(model.net)
    return model


def uncut(model: LitCharLM, prompt: str, index: int = 0) -> str:
    """A text without a stop string, generated alone."""
    return model.generate(model.tokenizer.encode(prompt)[None], SHORT, indices=[index])[0]


def cut(text: str, prompt: str, stop: str) -> str:
    """A text up to the first stop string after the prompt."""
    new = text.removeprefix(prompt)
    return prompt + (new.split(stop)[0] if stop else new)


@given(PROMPTS, STOPS, st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
def test_each_text_ends_before_the_stop_string(
    model: LitCharLM, prompt: str, stop: str, indices: list[int]
) -> None:
    """At the place where it would end alone, whatever the other texts do."""
    ids = model.tokenizer.encode(prompt).expand(len(indices), -1)
    texts = model.generate(ids, SHORT, indices=indices, stop=stop)
    assert texts == [cut(uncut(model, prompt, index), prompt, stop) for index in indices]


def test_a_stop_string_in_the_prompt_does_not_count(model: LitCharLM) -> None:
    """Nor one that begins in the prompt."""
    prompt = model.tokenizer.encode("ab\nab")[None]
    text = uncut(model, "ab\nab")
    for stop in ("ab\n", text[4:6]):
        assert stop in text[:6]
        assert model.generate(prompt, SHORT, stop=stop) == [cut(text, "ab\nab", stop)]


@given(PROMPTS, STOPS, st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
def test_on_text_receives_the_first_text_in_pieces(
    model: LitCharLM, prompt: str, stop: str, indices: list[int]
) -> None:
    """Never what the stop string cuts off; at most the length of a stop string is held back."""
    received: list[tuple[int, str]] = []
    ids = model.tokenizer.encode(prompt).expand(len(indices), -1)
    text = model.generate(
        ids, SHORT, indices=indices, stop=stop, on_text=lambda *piece: received.append(piece)
    )[0]
    assert {index for index, _ in received} == {indices[0]}
    pieces = [piece for _, piece in received]
    assert pieces[0] == prompt
    assert all(len(piece) == 1 for piece in pieces[1:])
    assert text.startswith("".join(pieces))
    assert len(text) - len("".join(pieces)) <= len(stop)


def test_on_text_receives_each_character_before_the_next_is_drawn(model: LitCharLM) -> None:
    received: list[str] = []
    lengths: list[int] = []
    hook = model.net.register_forward_pre_hook(lambda *_: lengths.append(len("".join(received))))
    prompt = model.tokenizer.encode("ab")[None]
    (text,) = model.generate(prompt, SHORT, on_text=lambda _, piece: received.append(piece))
    hook.remove()
    assert lengths == list(range(2, 22))
    assert "".join(received) == text


@pytest.mark.parametrize("training", [True, False])
def test_generating_restores_the_mode(training: bool) -> None:
    """Also after an error."""
    net = partial(GPT, layers=1, width=16, dropout=0.5)
    model = LitCharLM(net, alphabet="abcde", context=6).train(training)
    model.generate(random_ids(5, 1, 3), SamplingSettings(max_new_tokens=2))
    assert {module.training for module in model.modules()} == {training}
    with pytest.raises(ZeroDivisionError):
        model.generate(random_ids(5, 1, 3), SHORT, on_text=lambda *_: 1 // 0)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(("alphabet", "prompt"), [("\nab", "\n"), ("ab", "a")])
def test_default_prompt(alphabet: str, prompt: str) -> None:
    assert default_prompt(CharTokenizer(alphabet)) == prompt
