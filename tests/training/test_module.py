"""The Lightning module in a real Trainer, on the built-in corpus.

Shapes: B batch, T time.
"""

import copy
import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import random_ids, stirred
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation.sampling import SamplingSettings
from lit_gpt_scratch.models.gpt import GPT, Bigram, Ensemble, NetFactory
from lit_gpt_scratch.training.module import LitCharLM, Prompts
from lit_gpt_scratch.training.optim import AdamW, WarmupCosine
from lit_gpt_scratch.training.throughput import Throughput

CONTEXT, BATCH = 12, 4


def data_module(seed: int = 1, **arguments: Any) -> CharDataModule:
    data = CharDataModule("sample", CONTEXT, BATCH, seed=seed, sample_size=20_000, **arguments)
    data.open()
    return data


def make_model(data: CharDataModule, dropout: float = 0.0, **arguments: Any) -> LitCharLM:
    torch.manual_seed(0)
    net = partial(GPT, layers=1, width=16, dropout=dropout)
    return LitCharLM(net, alphabet=data.alphabet, context=CONTEXT, **arguments)


def make_trainer(steps: int = 4, **arguments: Any) -> pl.Trainer:
    settings = {
        "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": steps,
        "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False, "log_every_n_steps": 2,
    }  # fmt: skip
    return pl.Trainer(max_steps=steps, **settings | arguments)


def batch_losses(
    model: LitCharLM, data: CharDataModule, *numbers: int, parts: int = 1
) -> list[Tensor]:
    """Of the training batches of those numbers, computed without Lightning."""
    losses = []
    for k in numbers:
        starts = data.train_windows(k, parts=parts).starts
        ids = torch.stack([data.tokens[s : s + CONTEXT + 1].long() for s in starts.tolist()])
        losses.append(F.cross_entropy(model.net(ids[:, :-1]).mT, ids[:, 1:]))
    return losses


@torch.no_grad()
def text_loss(model: LitCharLM, ids: Tensor) -> float:
    """Of every character of a text but the first, in windows side by side, one at a time."""
    total = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1].long()
        logits = model.net(window[None, :-1])[0].double()
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / (len(ids) - 1)


def fitted(seed: int = 1, disturb: int = 0) -> dict[str, Tensor]:
    """Weights after a few steps with dropout; `disturb` numbers are drawn before the first."""
    data = data_module(seed)
    model = make_model(data, dropout=0.3)
    torch.rand(disturb)
    make_trainer().fit(model, data)
    return model.net.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_a_function_of_its_seed() -> None:
    """Equal to the bit, dropout included, whatever was drawn before; another seed differs."""
    first = fitted()
    assert same(first, fitted())
    assert same(first, fitted(disturb=5))
    assert not same(first, fitted(seed=2))


def test_dropout_is_a_function_of_the_batch_and_the_rank() -> None:
    data = data_module()
    model = make_model(data, dropout=0.5).train()
    batch = data.gather(data.train_windows(0))
    again, other = (batch._replace(seed=seed) for seed in (batch.seed, batch.seed + 1))
    loss = model.training_step(batch, 0)
    assert torch.equal(loss, model.training_step(again, 7))
    assert not torch.equal(loss, model.training_step(other, 0))
    assert data.train_windows(0).seed != data.train_windows(1).seed


def test_the_first_steps_metrics_are_those_of_the_first_batch() -> None:
    """Loss, gradient norm before clipping, rate and counts, computed by hand."""
    data = data_module()
    model = make_model(data, optimizer=partial(AdamW, lr=0.01), schedule=None)
    by_hand = copy.deepcopy(model)
    trainer = make_trainer(1, log_every_n_steps=1, gradient_clip_val=1e-3, callbacks=[Throughput()])
    trainer.fit(model, data)
    (loss,) = batch_losses(by_hand, data, 0)
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in by_hand.parameters()))
    logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
    assert logged["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert norm > 1e-3
    assert logged["lr"] == pytest.approx(0.01)
    assert logged["tokens_seen"] == BATCH * CONTEXT
    assert logged["chars_per_sec"] > 0
    assert logged["step"] == 1


def test_the_logged_training_loss_is_the_mean_since_the_last_row() -> None:
    data = data_module()
    model = make_model(data, optimizer=partial(torch.optim.SGD, lr=0.0), schedule=None)
    trainer = make_trainer(6, log_every_n_steps=3, callbacks=[Throughput()])
    trainer.fit(model, data)
    expected = torch.stack(batch_losses(model, data, 3, 4, 5)).mean().item()
    assert trainer.logged_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert trainer.logged_metrics["tokens_seen"] == 6 * BATCH * CONTEXT


def test_accumulating_takes_the_mean_gradient_of_consecutive_batches() -> None:
    """And a step's characters are counted in all of them."""
    data = data_module()
    model = make_model(data, optimizer=partial(torch.optim.SGD, lr=1.0), schedule=None)
    by_hand = copy.deepcopy(model)
    trainer = make_trainer(
        2, val_check_interval=4, accumulate_grad_batches=2, callbacks=[Throughput()]
    )
    trainer.fit(model, data)
    for first in (0, 2):
        loss = torch.stack(batch_losses(by_hand, data, first, first + 1, parts=2)).mean()
        parameters = list(by_hand.net.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= gradient
    for one, other in zip(model.net.parameters(), by_hand.net.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert trainer.logged_metrics["tokens_seen"] == 2 * 2 * BATCH * CONTEXT


def test_the_schedule_steps_with_the_optimizer() -> None:
    """Not with the batches: four times here, in eight batches."""
    data = data_module()
    model = make_model(data, optimizer=partial(AdamW, lr=0.01))
    trainer = make_trainer(4, accumulate_grad_batches=2, val_check_interval=8)
    trainer.fit(model, data)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_validation_is_the_loss_of_the_whole_split() -> None:
    """The ragged last window too; and what follows from it: bits, perplexity."""
    data = data_module(val_fraction=0.0717)
    model = make_model(data)
    assert (len(data.splits.val) - 1) % CONTEXT
    nn.init.normal_(model.net.unembed[1].weight)  # so that it differs from place to place
    (found,) = make_trainer().validate(model, data, verbose=False)
    val = data.splits.val
    loss = text_loss(model.eval(), data.tokens[val.start : val.stop])
    assert found["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert found["val/bpc"] == pytest.approx(loss / math.log(2), abs=1e-4)
    assert found["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_gap_is_validation_less_the_same_on_training_text() -> None:
    data = data_module()
    model = make_model(data)
    nn.init.normal_(model.net.unembed[1].weight)
    (found,) = make_trainer().validate(model, data, verbose=False)
    slices = [w for w in data.val_dataloader() if w.split == "train slice"]
    places = torch.cat([windows.starts for windows in slices]).tolist()
    assert len(places) > 10
    assert max(places) + CONTEXT < len(data.splits.train)
    losses = [text_loss(model.eval(), data.tokens[s : s + CONTEXT + 1]) for s in places]
    gap = found["val/loss"] - sum(losses) / len(losses)
    assert found["val/gap"] == pytest.approx(gap, abs=1e-5)


def test_the_test_split_is_the_one_after_validation() -> None:
    data = data_module(test_fraction=0.1)
    model = make_model(data)
    nn.init.normal_(model.net.unembed[1].weight)
    (found,) = make_trainer().test(model, data, verbose=False)
    loss = text_loss(model.eval(), data.tokens[18_000:])
    assert found == {
        "test/loss": pytest.approx(loss, abs=1e-5),
        "test/bpc": pytest.approx(loss / math.log(2), abs=1e-4),
        "test/perplexity": pytest.approx(math.exp(loss), rel=1e-4),
    }


def test_a_fit_validates_what_it_has_trained() -> None:
    """The numbers of its last validation are those of its last weights, without dropout."""
    data = data_module()
    model = make_model(data, dropout=0.3)
    trainer = make_trainer(callbacks=[Throughput()])
    trainer.fit(model, data)
    loss = text_loss(model.eval(), data.tokens[18_000:])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss, abs=1e-5)
    everything = {"train/loss", "val/loss", "val/bpc", "val/perplexity", "val/gap", "lr"}
    everything |= {"grad_norm", "tokens_seen", "chars_per_sec", "step"}
    assert everything <= set(trainer.callback_metrics)


# Texts

LETTERS = st.text("\nab", min_size=1, max_size=9)
STOPS = st.text("\nab", max_size=3)
SHORT = SamplingSettings(max_new_tokens=20, seed=3)


@pytest.fixture(scope="module")
def writer() -> LitCharLM:
    """A model of an alphabet so small that any stop is soon drawn."""
    model = LitCharLM(partial(GPT, layers=1, width=16), alphabet="\nab", context=6)
    model.net = stirred(model.net)
    return model


def test_predictions_are_the_generated_texts_without_dropout() -> None:
    data = data_module()
    model = make_model(data, dropout=0.5)
    model.sampling = SamplingSettings(max_new_tokens=9, seed=3)
    prompt = data.tokenizer.encode("Kings ")
    texts = model.predict_step(Prompts(prompt.expand(3, -1), [4, 0, 2]), 0)
    assert [len(text) for text in texts] == [15] * 3
    assert all(text.startswith("Kings ") for text in texts)
    assert len(set(texts)) == 3
    assert texts[:1] == model.generate(prompt[None], model.sampling, [4])


def uncut(model: LitCharLM, prompt: str, index: int = 0) -> str:
    """A text without a stop, made alone."""
    return model.generate(model.tokenizer.encode(prompt)[None], SHORT, [index])[0]


def cut(text: str, prompt: str, stop: str) -> str:
    """A text up to the first stop in what was added to the prompt."""
    new = text.removeprefix(prompt)
    return prompt + (new.split(stop)[0] if stop else new)


@given(LETTERS, STOPS, st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
def test_each_text_ends_before_the_stop_that_it_draws(
    writer: LitCharLM, prompt: str, stop: str, indices: list[int]
) -> None:
    """Where it would end alone, whatever the others do; one that draws none goes on."""
    ids = writer.tokenizer.encode(prompt).expand(len(indices), -1)
    texts = writer.generate(ids, SHORT, indices, stop)
    assert texts == [cut(uncut(writer, prompt, index), prompt, stop) for index in indices]


def test_a_stop_counts_in_new_text_alone(writer: LitCharLM) -> None:
    """Not in the prompt, nor across its end."""
    prompt = writer.tokenizer.encode("ab\nab")[None]
    whole = uncut(writer, "ab\nab")
    for stop in ("ab\n", whole[4:6]):
        assert stop in whole[:6]
        assert writer.generate(prompt, SHORT, stop=stop) == [cut(whole, "ab\nab", stop)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
def test_a_watcher_sees_the_first_text_as_it_is_made(
    writer: LitCharLM, prompt: str, stop: str, indices: list[int]
) -> None:
    """Never what a stop cuts off; of the rest at most as much as a stop is long is held back."""
    seen: list[tuple[int, str]] = []
    ids = writer.tokenizer.encode(prompt).expand(len(indices), -1)
    text = writer.generate(ids, SHORT, indices, stop, lambda *piece: seen.append(piece))[0]
    assert {index for index, _ in seen} == {indices[0]}
    pieces = [piece for _, piece in seen]
    assert pieces[0] == prompt
    assert all(len(piece) == 1 for piece in pieces[1:])
    assert text.startswith("".join(pieces))
    assert len(text) - len("".join(pieces)) <= len(stop)


def test_a_watcher_sees_each_character_before_the_next_is_drawn(writer: LitCharLM) -> None:
    seen, lengths = [], []
    hook = writer.net.register_forward_pre_hook(lambda *_: lengths.append(len("".join(seen))))
    prompt = writer.tokenizer.encode("ab")[None]
    (text,) = writer.generate(prompt, SHORT, watch=lambda _, piece: seen.append(piece))
    hook.remove()
    assert lengths == list(range(2, 22))
    assert "".join(seen) == text


def test_predictions_stop_and_are_watched_as_the_model_was_told(writer: LitCharLM) -> None:
    model, seen = copy.deepcopy(writer), []
    model.sampling, model.stop, model.watch = SHORT, "a", lambda *piece: seen.append(piece)
    prompts = Prompts(model.tokenizer.encode("ab").expand(2, -1), [5, 1])
    texts = model.predict_step(prompts, 0)
    assert texts == [cut(uncut(writer, "ab", index), "ab", "a") for index in (5, 1)]
    assert seen[0] == (5, "ab")


@pytest.mark.parametrize("training", [True, False])
def test_generating_leaves_the_mode_as_it_was(training: bool) -> None:
    model = make_model(data_module(), dropout=0.5).train(training)
    model.generate(random_ids(5, 1, 3), SamplingSettings(max_new_tokens=2))
    assert {module.training for module in model.modules()} == {training}


def test_compiling_keeps_the_names_of_the_weights() -> None:
    """In place, and when a fit begins: nothing is compiled before."""
    data = data_module()
    plain, compiled = make_model(data), make_model(data, compile=True)
    compiled.setup("validate")
    assert compiled_parts(compiled.net) == []
    compiled.setup("fit")
    assert compiled_parts(compiled.net) == ["blocks.0"]
    assert list(compiled.state_dict()) == list(plain.state_dict())


def compiled_parts(net: nn.Module) -> list[str]:
    return [name for name, part in net.named_modules() if part._compiled_call_impl]


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (Bigram, [""]),
        (partial(GPT, layers=2, width=16), ["blocks.0", "blocks.1"]),
        (
            partial(Ensemble, net=partial(GPT, layers=1, width=16), size=2),
            ["members.0.blocks.0", "members.1.blocks.0"],
        ),
    ],
)
def test_blocks_are_compiled_and_else_the_network(net: NetFactory, parts: list[str]) -> None:
    """One after the other: those of one shape share what is compiled once."""
    model = LitCharLM(net=net, compile=True, alphabet="abc", context=8)
    model.setup("fit")
    assert compiled_parts(model.net) == parts


@pytest.mark.parametrize("alphabet", ["", "ba", "aa"])
def test_an_alphabet_that_is_none_is_refused(alphabet: str) -> None:
    with pytest.raises(InputError, match="alphabet"):
        LitCharLM(alphabet=alphabet)


def test_an_optimizer_or_schedule_that_cannot_be_is_refused_before_the_run() -> None:
    with pytest.raises(InputError, match="lr is 0"):
        make_model(data_module(), optimizer=partial(AdamW, lr=0.0))
    with pytest.raises(InputError, match="warmup is 0"):
        make_model(data_module(), schedule=partial(WarmupCosine, warmup=0))
