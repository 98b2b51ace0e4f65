"""`predict`: which batches it makes of prompts, and what it prints when."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from laws import with_random_weights

from lit_gpt_scratch.cli import predict
from lit_gpt_scratch.cli.predict import (
    MAX_BATCH,
    PredictSettings,
    TextWriter,
    group_by_length,
    make_batches,
    read_prompts,
)
from lit_gpt_scratch.data.windows import Batches
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation import SamplingSettings
from lit_gpt_scratch.models.gpt import GPT
from lit_gpt_scratch.training.module import LitCharLM

RULE = f"\n{'-' * 80}\n"
MIXED = ["ab", "b", "", "ba", "aab", "bb"]  # lengths 2, 1, 1 (a new line), 2, 3, 2
Printed = Callable[..., list[str]]


@pytest.fixture
def model() -> LitCharLM:
    torch.manual_seed(0)
    model = LitCharLM(partial(GPT, layers=1, width=16), alphabet="\nab", context=6)
    model.net = with_random_weights(model.net)
    return model


def asked(folder: Path, prompts: list[str], **how: Any) -> PredictSettings:
    """Settings that read prompts from a file."""
    path = folder / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return PredictSettings(prompt_file=str(path), **{"max_new_tokens": 12} | how)


@pytest.fixture
def printed(model: LitCharLM, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Predicts in a real Trainer, and gives the texts that were printed."""

    def run(settings: PredictSettings, seed: int = 5) -> list[str]:
        writer = TextWriter()
        trainer = pl.Trainer(
            accelerator="cpu", enable_progress_bar=False, logger=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        prompts = Batches(make_batches(model.tokenizer, settings, seed, writer))
        capsys.readouterr()
        trainer.predict(model, prompts, return_predictions=False)
        writer.end()
        said = capsys.readouterr().out
        assert said.endswith("\n")
        return said.removesuffix("\n").split(RULE)

    return run


# Batches


@given(st.lists(st.integers(1, 4), min_size=1, max_size=200))
@example([2] * MAX_BATCH)
@example([2, 1] * (MAX_BATCH + 1))
def test_texts_of_one_length_are_batched_without_padding(lengths: list[int]) -> None:
    """Each text once, with its own number, in full batches, in order of number."""
    prompts = [(torch.full((length,), i), i) for i, length in enumerate(lengths)]
    grouped = list(group_by_length(prompts))
    for ids, indices in grouped:
        assert len(ids) == len(indices) <= MAX_BATCH
        assert indices == sorted(indices)
        assert all((row == index).all() for row, index in zip(ids, indices, strict=True))
        assert {lengths[index] for index in indices} == {ids.size(1)}
    assert sorted(index for _, indices in grouped for index in indices) == list(range(len(lengths)))
    full = Counter({n: -(-count // MAX_BATCH) for n, count in Counter(lengths).items()})
    assert Counter(ids.size(1) for ids, _ in grouped) == full
    # Lengths come in the order of their first text.
    assert [n for n, _ in groupby(ids.size(1) for ids, _ in grouped)] == list(
        dict.fromkeys(lengths)
    )


def test_texts_are_numbered_prompt_by_prompt(model: LitCharLM, tmp_path: Path) -> None:
    """Text j of prompt i is number i * num_samples + j."""
    found = {}
    for batch in make_batches(model.tokenizer, asked(tmp_path, MIXED, num_samples=3), 5):
        rows = [model.tokenizer.decode(row) for row in batch.ids]
        found |= dict(zip(batch.indices, rows, strict=True))
    assert [found[i] for i in range(18)] == [prompt or "\n" for prompt in MIXED for _ in range(3)]


@pytest.mark.parametrize(("alphabet", "prompt"), [("\nab", "\n"), ("ab", "a")])
def test_an_empty_prompt_is_a_new_line_if_the_alphabet_has_one(alphabet: str, prompt: str) -> None:
    model = LitCharLM(partial(GPT, layers=1, width=16), alphabet=alphabet, context=6)
    (batch,) = make_batches(model.tokenizer, PredictSettings(), 5)
    assert [model.tokenizer.decode(row) for row in batch.ids] == [prompt]
    assert batch.indices == [0]


def test_batches_carry_the_settings(model: LitCharLM) -> None:
    how = {"max_new_tokens": 4, "temperature": 0.3, "top_k": 2, "top_p": 0.7, "min_p": 0.1}
    (batch,) = make_batches(model.tokenizer, PredictSettings(**how, stop="ab"), 5)
    assert batch.settings == PredictSettings(**how, stop="ab", seed=5)
    assert batch.stop == "ab"
    (batch,) = make_batches(model.tokenizer, PredictSettings(seed=0), 5)
    assert batch.settings.seed == 0
    assert batch.stop == ""


def test_a_top_k_above_the_alphabet_gets_a_notice(
    model: LitCharLM, capsys: pytest.CaptureFixture[str]
) -> None:
    make_batches(model.tokenizer, PredictSettings(top_k=3), 5)
    assert capsys.readouterr().err == ""
    make_batches(model.tokenizer, PredictSettings(top_k=4), 5)
    assert "top_k is 4, but the alphabet has 3 characters" in capsys.readouterr().err


# Prompts


@given(st.lists(st.text("ab "), min_size=1).filter(lambda lines: any(lines)))
def test_each_line_of_a_file_is_a_prompt(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    """Spaces and empty lines count; the last line end is optional; Windows line ends too."""
    path = tmp_path_factory.mktemp("lines") / "prompts.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes("".join(line + end for line in lines).encode())
        assert read_prompts(PredictSettings(prompt_file=str(path))) == lines
    if lines[-1]:
        path.write_bytes("\n".join(lines).encode())
        assert read_prompts(PredictSettings(prompt_file=str(path))) == lines


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("äb", encoding="utf-8")
    assert read_prompts(PredictSettings(prompt_file="~/prompts.txt")) == ["äb"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, r"prompts.txt cannot be read: No such file"),
        (b"ab\n\xff\n", r"prompts.txt is not UTF-8 text"),
        (b"", r"prompts.txt is empty"),
        (b"ab\n\nb8\n", r"line 3 of .*prompts.txt: character '8' at position 1"),
    ],
    ids=["missing", "not UTF-8", "empty", "unknown"],
)
def test_a_bad_prompt_file_is_refused_by_name(
    model: LitCharLM, tmp_path: Path, contents: bytes | None, message: str
) -> None:
    path = tmp_path / "prompts.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(InputError, match=message):
        make_batches(model.tokenizer, PredictSettings(prompt_file=str(path)), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a8"}, "^prompt: character '8' at position 1"),
        ({"stop": "a8"}, "^stop: character '8' at position 1"),
        ({"prompt": "a", "prompt_file": __file__}, "prompt and prompt_file are both given"),
        ({"prompt_file": str(Path(__file__).parent)}, "cannot be read: Is a directory"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    model: LitCharLM, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_batches(model.tokenizer, PredictSettings(**arguments), 5)


# Texts


@pytest.mark.parametrize("stop", ["", "a", "b\n"])
def test_texts_are_printed_in_the_order_of_the_prompts(
    model: LitCharLM, printed: Printed, tmp_path: Path, stop: str
) -> None:
    """Each text depends only on the seed and on its number."""
    settings = asked(tmp_path, MIXED, num_samples=3, stop=stop)
    texts = printed(settings)
    sampling = SamplingSettings(max_new_tokens=12, temperature=0.8, seed=5)
    alone = []
    for index, prompt in enumerate(prompt or "\n" for prompt in MIXED for _ in range(3)):
        ids = model.tokenizer.encode(prompt)[None]
        alone += model.generate(ids, sampling, indices=[index], stop=stop)
        assert alone[-1].startswith(prompt)
    assert texts == alone
    assert len(set(texts)) > len(MIXED)


def test_the_batch_size_changes_no_text(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = asked(tmp_path, MIXED, num_samples=3, stop="ab")
    texts = printed(settings)
    monkeypatch.setattr(predict, "MAX_BATCH", 2)
    assert printed(settings) == texts


def test_seed_overrides_seed_everything(printed: Printed, tmp_path: Path) -> None:
    plain, own = asked(tmp_path, MIXED), asked(tmp_path, MIXED, seed=7)
    assert printed(own, 5) == printed(own, 6) == printed(plain, 7) != printed(plain, 5)


@pytest.mark.parametrize("stop", ["", "a", "\nb"])
def test_the_first_text_is_printed_character_by_character(
    model: LitCharLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    """All characters are out, except those that may become the stop string."""
    settings = asked(tmp_path, ["ab", "b", "bab"], stop=stop)
    writer, said, states = TextWriter(), "", []

    def look(*_: object) -> None:
        nonlocal said
        said += capsys.readouterr().out
        states.append(said)

    model.net.register_forward_pre_hook(look)
    before = ""
    for i, prompts in enumerate(make_batches(model.tokenizer, settings, 5, writer)):
        states.clear()
        (text,) = model.predict_step(prompts, i)
        seen = [prompts.ids.size(1) + max(0, n - len(stop)) for n in range(len(states))]
        assert states == [before + text[:count] for count in seen]
        before += text + RULE
    look()
    assert said + RULE == before


def test_only_a_new_line_ends_a_prompt(tmp_path: Path) -> None:
    """A form feed and the separators of Unicode do not, so that line numbers match an editor's."""
    path = tmp_path / "prompts.txt"
    path.write_text("a\x0cb\nc\u2028d\n\ne\n", encoding="utf-8")
    settings = PredictSettings(prompt_file=str(path))
    assert read_prompts(settings) == ["a\x0cb", "c\u2028d", "", "e"]


def test_the_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(PredictSettings(prompt_file="~nobody-of-that-name/prompts.txt"))
