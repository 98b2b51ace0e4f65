"""Exports for Hugging Face: transformers and tokenizers read them, and compute what we compute."""

import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import CONFIGS, random_ids, small, with_random_weights
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from unicode_texts import TEXTS

from lit_gpt_scratch.checkpoints.to_huggingface import SAME_ATTENTION, huggingface_files, tokenizer
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, FusedAttention, ModernGPT, MultiHeadAttention

SPECIAL = "\n\r\t !\"'<>\\aABnst.\x00\x85\u00a0\u0301\u200f\u2028\u3000\ufeff😀🏽"
ALPHABET = "".join(sorted(SPECIAL))
CONTEXT = 8


class Mine(GPT):
    pass


class MyAttention(MultiHeadAttention):
    pass


def make(net: Any = GPT, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return with_random_weights(net(len(ALPHABET), CONTEXT, layers=2, width=16, **arguments))


def write(folder: Path, net: Any) -> Path:
    """Write a network's files."""
    for name, content in huggingface_files(net, ALPHABET, CONTEXT, {"val_loss": 1.5}).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("it connects to another computer")

    monkeypatch.setattr(socket.socket, "connect", connect)


@torch.no_grad()
@pytest.mark.parametrize("attention", SAME_ATTENTION)
@pytest.mark.parametrize("heads", [1, 4])
def test_logits_and_attention_equal_ours(attention: Any, heads: int, tmp_path: Path) -> None:
    net = make(attention=partial(attention, heads=heads))
    theirs = AutoModelForCausalLM.from_pretrained(
        write(tmp_path, net), attn_implementation="eager"
    ).eval()
    ids = random_ids(len(ALPHABET), 3, CONTEXT)
    expected = net(ids)
    assert expected.abs().max() > 0.5
    found = theirs(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    x = net.embed(ids)
    for block, weights in zip(net.blocks, found.attentions, strict=True):
        own = block.attention.weights(block.attention_norm(x))
        torch.testing.assert_close(weights, own, atol=1e-5, rtol=1e-5)
        x = block(x)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "gpt_cpu_classic", "gpt"])
def test_every_config_with_a_gpt_becomes_a_gpt2(name: str, tmp_path: Path) -> None:
    model = small(next(config for config in CONFIGS if config.stem == name))
    net, alphabet = with_random_weights(model.net), model.tokenizer.alphabet
    for file, content in huggingface_files(net, alphabet, model.context, {}).items():
        (tmp_path / file).write_bytes(content)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), "weights are missing, or are not used"
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ids = random_ids(len(alphabet), 2, model.context)
    torch.testing.assert_close(theirs.eval()(ids).logits, net(ids), atol=1e-5, rtol=1e-5)


def test_the_config_has_our_facts_and_no_dropout(tmp_path: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(write(tmp_path, make(dropout=0.5))).config
    assert (config.val_loss, config.n_positions, config.n_inner) == (1.5, CONTEXT, 64)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert config.tie_word_embeddings is False  # older versions would tie them
    assert config.bos_token_id is config.eos_token_id is config.pad_token_id is None


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    net = make()
    net.unembed[1].weight = net.embed.character.weight
    theirs = AutoModelForCausalLM.from_pretrained(write(tmp_path, net))
    assert torch.equal(theirs.lm_head.weight, net.embed.character.weight)


# The tokenizer


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    found = AutoTokenizer.from_pretrained(write(tmp_path, make()))
    written = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert written["model_input_names"] == found.model_input_names  # older versions have more
    text = ALPHABET[::-1] + "  a  A 's n't .\n\n "
    ids = CharTokenizer(ALPHABET).encode(text)
    encoded = found(text, return_tensors="pt")
    assert torch.equal(encoded.input_ids[0], ids)
    assert encoded.keys() == {"input_ids", "attention_mask"}
    assert found.decode(ids) == text
    assert len(found) == len(ALPHABET)
    assert found.model_max_length == CONTEXT


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.data())
def test_texts_of_any_alphabet_round_trip(text: str, data: st.DataObject) -> None:
    own = CharTokenizer.of(text)
    theirs = Tokenizer.from_str(json.dumps(tokenizer(own.alphabet)))
    more = data.draw(st.text(st.sampled_from(own.alphabet)))
    for part in (text, more):
        ids = theirs.encode(part).ids
        assert ids == own.encode(part).tolist()
        assert theirs.decode(ids) == part


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts_round_trip(name: str) -> None:
    text = TEXTS[name][:3_000]
    own = CharTokenizer.of(text)
    theirs = Tokenizer.from_str(json.dumps(tokenizer(own.alphabet)))
    assert theirs.encode(text).ids == own.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text


@given(st.characters(exclude_categories=["Cs"]).filter(lambda c: c not in ALPHABET))
def test_a_character_outside_the_alphabet_is_an_error_as_in_our_tokenizer(unknown: str) -> None:
    theirs = Tokenizer.from_str(json.dumps(tokenizer(ALPHABET)))
    with pytest.raises(Exception, match="UNK"):
        theirs.encode(f"a{unknown}A")


def test_an_alphabet_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InputError, match=r"the alphabet has '\\udc80', half of a UTF-16 pair"):
        huggingface_files(GPT(2, CONTEXT), "a\udc80", CONTEXT, {})


# Other networks


REFUSED = {
    "bigram": "Bigram is a table",
    "mean": "AttentionLM has no transformer blocks",
    "gpt_cpu": "ModernGPT has rotary positions, RMSNorm and other parts",
    "gpt_cpu_long": "Ensemble consists of several networks",
}
WAY_OUT = r"It can write GPT with MultiHeadAttention or FusedAttention; --format onnx can write"


@pytest.mark.parametrize("name", REFUSED)
def test_another_rung_is_refused_with_the_reason(name: str) -> None:
    model = small(next(config for config in CONFIGS if config.stem == name))
    with pytest.raises(InputError, match=f"a GPT-2, and {REFUSED[name]}.*{WAY_OUT}"):
        huggingface_files(model.net, model.tokenizer.alphabet, model.context, {})


@pytest.mark.parametrize(
    ("net", "arguments", "reason"),
    [
        (Mine, {}, "Mine is another class"),
        (GPT, {"attention": MyAttention}, "GPT has the attention MyAttention"),
        (ModernGPT, {"attention": FusedAttention}, "ModernGPT has rotary positions"),
    ],
)
def test_a_network_that_may_compute_something_else_is_refused(
    net: Any, arguments: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=f"a GPT-2, and {reason}.*{WAY_OUT}"):
        huggingface_files(make(net, **arguments), ALPHABET, CONTEXT, {})
