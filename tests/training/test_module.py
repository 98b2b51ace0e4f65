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
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation import Prompts, SamplingSettings
from lit_gpt_scratch.models.gpt import GPT
from lit_gpt_scratch.training import AdamW, WarmupCosine
from lit_gpt_scratch.training.module import LitCharLM
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
    """Compute the losses of training batches by number, without Lightning."""
    losses = []
    for k in numbers:
        starts = data.train_windows(k, parts=parts).starts
        ids = torch.stack([data.tokens[s : s + CONTEXT + 1].long() for s in starts.tolist()])
        losses.append(F.cross_entropy(model.net(ids[:, :-1]).mT, ids[:, 1:]))
    return losses


@torch.no_grad()
def text_loss(model: LitCharLM, ids: Tensor) -> float:
    """Compute the mean loss of a text in windows side by side, one at a time."""
    total = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1].long()
        logits = model.net(window[None, :-1])[0].double()
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / (len(ids) - 1)


def train_weights(seed: int = 1, disturb: int = 0) -> dict[str, Tensor]:
    """Weights after a few steps with dropout; `disturb` numbers are drawn before the first."""
    data = data_module(seed)
    model = make_model(data, dropout=0.3)
    torch.rand(disturb)
    make_trainer().fit(model, data)
    return model.net.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_is_a_function_of_the_seed() -> None:
    """Weights are equal to the bit, with dropout, whatever random numbers were drawn before."""
    first = train_weights()
    assert same(first, train_weights())
    assert same(first, train_weights(disturb=5))
    assert not same(first, train_weights(seed=2))


def test_metrics_of_the_first_step() -> None:
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


def test_train_loss_is_the_mean_since_the_last_row() -> None:
    data = data_module()
    model = make_model(data, optimizer=partial(torch.optim.SGD, lr=0.0), schedule=None)
    trainer = make_trainer(6, log_every_n_steps=3, callbacks=[Throughput()])
    trainer.fit(model, data)
    expected = torch.stack(batch_losses(model, data, 3, 4, 5)).mean().item()
    assert trainer.logged_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert trainer.logged_metrics["tokens_seen"] == 6 * BATCH * CONTEXT


def test_accumulation_takes_the_mean_gradient_of_consecutive_batches() -> None:
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
    """Not with the batches: four times in eight batches."""
    data = data_module()
    model = make_model(data, optimizer=partial(AdamW, lr=0.01))
    trainer = make_trainer(4, accumulate_grad_batches=2, val_check_interval=8)
    trainer.fit(model, data)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_validation_loss_covers_the_whole_split() -> None:
    """The shorter last window counts too; bits and perplexity follow from the loss."""
    data = data_module(val_fraction=0.0717)
    model = make_model(data)
    assert (len(data.splits.val) - 1) % CONTEXT
    nn.init.normal_(model.net.unembed[1].weight)  # makes losses differ between positions
    (found,) = make_trainer().validate(model, data, verbose=False)
    val = data.splits.val
    loss = text_loss(model.eval(), data.tokens[val.start : val.stop])
    assert found["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert found["val/bpc"] == pytest.approx(loss / math.log(2), abs=1e-4)
    assert found["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_gap_is_validation_loss_minus_loss_on_training_text() -> None:
    data = data_module()
    model = make_model(data)
    nn.init.normal_(model.net.unembed[1].weight)
    (found,) = make_trainer().validate(model, data, verbose=False)
    slices = [w for w in data.val_dataloader() if w.split == "train sample"]
    places = torch.cat([windows.starts for windows in slices]).tolist()
    assert len(places) > 10
    assert max(places) + CONTEXT < len(data.splits.train)
    losses = [text_loss(model.eval(), data.tokens[s : s + CONTEXT + 1]) for s in places]
    gap = found["val/loss"] - sum(losses) / len(losses)
    assert found["val/gap"] == pytest.approx(gap, abs=1e-5)


def test_test_loss_covers_the_test_split() -> None:
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


def test_fit_validates_the_last_weights() -> None:
    """Without dropout."""
    data = data_module()
    model = make_model(data, dropout=0.3)
    trainer = make_trainer(callbacks=[Throughput()])
    trainer.fit(model, data)
    loss = text_loss(model.eval(), data.tokens[18_000:])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss, abs=1e-5)
    everything = {"train/loss", "val/loss", "val/bpc", "val/perplexity", "val/gap", "lr"}
    everything |= {"grad_norm", "tokens_seen", "chars_per_sec", "step"}
    assert everything <= set(trainer.callback_metrics)


def test_predict_returns_the_generated_texts_without_dropout() -> None:
    data = data_module()
    model = make_model(data, dropout=0.5)
    settings = SamplingSettings(max_new_tokens=9, seed=3)
    prompt = data.tokenizer.encode("Kings ")
    texts = model.predict_step(Prompts(prompt.expand(3, -1), [4, 0, 2], settings), 0)
    assert [len(text) for text in texts] == [15] * 3
    assert all(text.startswith("Kings ") for text in texts)
    assert len(set(texts)) == 3
    assert texts[:1] == model.generate(prompt[None], settings, indices=[4])


def test_predict_passes_stop_and_callback_on() -> None:
    data = data_module()
    model, pieces = make_model(data), []
    ids, settings = data.tokenizer.encode("Kings ")[None], SamplingSettings(max_new_tokens=9)
    prompts = Prompts(ids, [5], settings, "e", lambda *piece: pieces.append(piece))
    (text,) = model.predict_step(prompts, 0)
    (uncut,) = model.generate(ids, settings, indices=[5])
    assert text == "Kings " + uncut.removeprefix("Kings ").split("e")[0]
    assert pieces[0] == (5, "Kings ")


@pytest.mark.parametrize("alphabet", ["", "ba", "aa"])
def test_a_wrong_alphabet_is_refused(alphabet: str) -> None:
    with pytest.raises(InputError, match="alphabet"):
        LitCharLM(alphabet=alphabet)


def test_a_wrong_optimizer_or_schedule_is_refused_before_the_run() -> None:
    with pytest.raises(InputError, match="lr is 0"):
        make_model(data_module(), optimizer=partial(AdamW, lr=0.0))
    with pytest.raises(InputError, match="warmup is 0"):
        make_model(data_module(), schedule=partial(WarmupCosine, warmup=0))
