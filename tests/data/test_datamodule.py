"""Laws of `data.py`."""

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.data import datamodule as data
from lit_gpt_scratch.data.datamodule import CharDataModule, Windows, split_corpus
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import SingleHeadAttention
from lit_gpt_scratch.models.gpt import AttentionLM
from lit_gpt_scratch.training.module import LitCharLM

ALPHABET = "".join(map(chr, range(ord("0"), ord("z"))))

fractions = st.tuples(st.floats(0.01, 0.98), st.just(0.0) | st.floats(0.01, 0.98)).filter(
    lambda two: sum(two) < 0.99
)
seeds, ks = st.integers(0, 2**32 - 1), st.integers(0, 2**63)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """A corpus' size and the options that split it into parts longer than the context."""
    context = draw(st.integers(1, 40))
    # Two more than the context, since a fraction of a size may come out one too small.
    length = st.integers(context + 2, context + 200)
    train, val, test = draw(length), draw(length), draw(st.just(0) | length)
    size = train + val + test
    options = {"val_fraction": val / size, "test_fraction": test / size}
    return {"text": size, "context": context, **options}


Opener = Callable[..., CharDataModule]


def text_of(size: int) -> str:
    """A text with no pattern, in which neighbouring windows differ."""
    letters = np.random.default_rng(size).integers(len(ALPHABET), size=size)
    return "".join(ALPHABET[letter] for letter in letters)


@pytest.fixture(scope="session")
def open_text(tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """Opens a data module over a text, or over one of a given size."""
    folder = tmp_path_factory.mktemp("texts")

    def open_text(text: str | int, **options: Any) -> CharDataModule:
        text = text_of(text) if isinstance(text, int) else text
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.txt"
        path.write_text(text, encoding="utf-8", newline="")
        module = CharDataModule(str(path), **{"context": 64} | options)
        module.open()
        return module

    return open_text


def as_rank(
    module: CharDataModule, rank: int, world: int, global_step: int = 0, accumulate: int = 1
) -> CharDataModule:
    """The module as it is in one process of several."""
    trainer: Any = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        global_step=global_step,
        accumulate_grad_batches=accumulate,
    )
    module.trainer = trainer
    return module


def test_fewer_windows_than_processes_are_refused(open_text: Opener) -> None:
    """On every process alike, so that none waits for the others for ever."""
    module = open_text(300, context=10)  # 29 predictions: two whole windows, and a ragged one
    for rank in range(3):
        with pytest.raises(InputError, match="too few for 3 processes"):
            as_rank(module, rank, 3).val_dataloader()
    assert all(len(as_rank(module, rank, 2).val_dataloader()) for rank in range(2))


def is_same(first: Windows, second: Windows) -> bool:
    return torch.equal(first.starts, second.starts) and first[1:] == second[1:]


def covered(loader: Any, split: str) -> Counter[int]:
    """How often each position of the corpus is predicted by the windows of a split."""
    return Counter(
        start + offset
        for windows in loader
        if windows.split == split
        for start in windows.starts.tolist()
        for offset in range(1, windows.length + 1)
    )


# Splits


def test_tiny_shakespeare_is_split_as_in_the_reference(
    shakespeare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(shakespeare))
    module = CharDataModule("tiny-shakespeare")
    module.open()
    assert len(module.alphabet) == 65
    assert module.splits.train == range(1_003_854)
    assert module.splits.val == range(1_003_854, 1_003_854 + 111_540)
    assert len(module.splits.test) == 0
    assert module.tokens.dtype == torch.uint8


@given(st.integers(0, 10**10), fractions)
def test_splits_are_consecutive_cover_the_corpus_and_have_their_size(
    size: int, two: tuple[float, float]
) -> None:
    parts = vars(split_corpus(size, *two))
    assert list(parts) == ["train", "val", "test"]
    train, val, test = parts.values()
    assert (train.start, train.stop, val.stop, test.stop) == (0, val.start, test.start, size)
    assert len(val) == pytest.approx(size * two[0], abs=2 + size * 1e-8)
    assert len(test) == pytest.approx(size * two[1], abs=2 + size * 1e-8)
    assert two[1] or not test


# Training batches


@given(seeds, ks, st.lists(ks, max_size=3))
def test_batch_k_is_the_same_whatever_was_drawn_before(
    open_text: Opener, seed: int, k: int, others: list[int]
) -> None:
    expected = open_text(1000, seed=seed).train_windows(k)
    module = open_text(1000, seed=seed)
    for other in others:
        module.train_windows(other)
        torch.rand(1)
        np.random.rand(1)  # noqa: NPY002
    assert is_same(module.train_windows(k), expected)


def test_batch_k_is_the_same_as_ever(open_text: Opener) -> None:
    """So that a run can be repeated with later versions of everything."""
    windows = open_text(1000, seed=1337, context=8, batch_size=6).train_windows(1)
    assert windows.starts.tolist() == [533, 182, 732, 28, 646, 588]
    assert windows.seed == 4_780_993_268_678_433_997


def test_other_seeds_and_numbers_give_other_batches(open_text: Opener) -> None:
    batches = [
        open_text(10_000, seed=seed).train_windows(k)
        for seed, k in itertools.product([0, 1, 1337, 2**32 - 1], [0, 1, 2, 1337, 2**32, 2**63])
    ]
    assert len({tuple(batch.starts.tolist()) for batch in batches}) == len(batches)
    assert len({batch.seed for batch in batches}) == len(batches)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_the_global_batch_out_among_themselves(open_text: Opener, world: int) -> None:
    module = open_text(1000, batch_size=12)
    shares = [module.train_windows(7, rank, world) for rank in range(world)]
    assert [len(share.starts) for share in shares] == [12 // world] * world
    together = torch.stack([share.starts for share in shares], dim=1).flatten()
    whole = module.train_windows(7)
    assert torch.equal(together, whole.starts)
    assert {share[1:] for share in shares} == {whole[1:]}


@given(layouts(), seeds, ks)
def test_training_windows_lie_inside_the_training_split(
    open_text: Opener, layout: dict[str, Any], seed: int, k: int
) -> None:
    module = open_text(**layout, seed=seed, batch_size=1000)
    starts = module.train_windows(k).starts
    assert starts.min() >= 0
    assert starts.max() + module.context < len(module.splits.train)


def test_every_place_in_the_training_split_is_drawn_equally_often(open_text: Opener) -> None:
    """The first and the last too."""
    module = open_text(40, context=8, batch_size=1000, val_fraction=0.25)
    counts = torch.bincount(torch.cat([module.train_windows(k).starts for k in range(22)]))
    assert len(counts) == 30 - 8
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_in_parts_has_the_windows_of_the_larger_batch(
    open_text: Opener, world: int
) -> None:
    large, small = (open_text(1000, batch_size=size) for size in (24, 8))
    for step in (0, 5):
        shares = [
            torch.stack([small.train_windows(k, r, world, 3).starts for r in range(world)], dim=1)
            for k in range(3 * step, 3 * step + 3)
        ]
        assert torch.equal(torch.cat(shares).flatten(), large.train_windows(step).starts)


def test_each_part_of_a_batch_has_its_own_dropout(open_text: Opener) -> None:
    """Also where there are many processes, whose ranks are added to it."""
    seeds = [open_text(1000).train_windows(k, parts=3).seed for k in range(6)]
    assert min(abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]) > 1_000_000


@pytest.mark.parametrize(("rank", "world", "step", "accumulate"), [(0, 1, 0, 1), (1, 2, 5, 3)])
def test_the_loader_goes_on_after_the_batches_already_used(
    open_text: Opener, rank: int, world: int, step: int, accumulate: int
) -> None:
    module = as_rank(open_text(1000), rank, world, step, accumulate)
    for k, windows in zip(range(4), module.train_dataloader(), strict=False):
        k += step * accumulate
        assert is_same(windows, module.train_windows(k, rank, world, parts=accumulate))


@pytest.mark.parametrize("text", [text_of(200), "".join(map(chr, range(200, 900)))])
def test_a_batch_holds_the_characters_and_the_ones_after_them(open_text: Opener, text: str) -> None:
    """Also for alphabets whose ids are wider than a byte."""
    module = open_text(text, context=7)
    windows = module.train_windows(0)
    batch = module.on_after_batch_transfer(windows, 0)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    for start, inputs, targets in zip(windows.starts, batch.inputs, batch.targets, strict=True):
        assert module.tokenizer.decode(inputs) == text[start : start + 7]
        assert module.tokenizer.decode(targets) == text[start + 1 : start + 8]
    assert (batch.seed, batch.split) == (windows.seed, "train")


# Evaluation


@given(layouts(), st.integers(1, 100))
def test_every_character_of_a_split_but_its_first_is_predicted_once(
    open_text: Opener, layout: dict[str, Any], batch: int
) -> None:
    module = open_text(**layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EVALUATION_TOKENS", batch)
        assert covered(module.val_dataloader(), "val") == Counter(module.splits.val[1:])
        loaded = list(module.val_dataloader())
        if module.splits.test:
            assert covered(module.test_dataloader(), "test") == Counter(module.splits.test[1:])
            loaded += module.test_dataloader()
        for windows in loaded:
            assert 1 <= windows.length <= module.context
            assert len(windows.starts) * windows.length <= max(batch, windows.length)


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_what_is_evaluated_together_fits_into_memory(length: int, alphabet_size: int) -> None:
    """Small alphabets are evaluated by the thousand characters, large ones by fewer."""
    count = data.windows_at_once(length, alphabet_size)
    assert count == 1 or count * length * alphabet_size <= 1 << 24
    assert count == 1 or count * length <= 8192
    assert alphabet_size > 2048 or (count + 1) * length > 8192


@given(layouts())
def test_the_slice_of_training_text_lies_inside_the_training_split(
    open_text: Opener, layout: dict[str, Any]
) -> None:
    """It is what validation is compared with: no character of another split may be in it."""
    module = open_text(**layout)
    slice_of_train = covered(module.val_dataloader(), "train slice")
    assert slice_of_train
    assert set(slice_of_train) <= set(module.splits.train)
    assert set(slice_of_train.values()) == {1}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_validation_out_among_themselves(
    open_text: Opener, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No window is seen twice to make the ranks' numbers equal: the mean would be another."""
    monkeypatch.setattr(data, "EVALUATION_TOKENS", 24)
    module = open_text(1003, context=8, test_fraction=0.2)
    for loader in ("val_dataloader", "test_dataloader"):
        alone = list(getattr(as_rank(module, 0, 1), loader)())
        for split in {windows.split for windows in alone}:
            shares = (getattr(as_rank(module, rank, world), loader)() for rank in range(world))
            together = sum((covered(share, split) for share in shares), Counter())
            assert together == covered(alone, split)


@pytest.fixture
def lit() -> LitCharLM:
    """Random weights, large enough that the loss of every character is another."""
    torch.manual_seed(0)
    net = functools.partial(AttentionLM, attention=SingleHeadAttention, width=16)
    lit = LitCharLM(net, alphabet=ALPHABET, context=8)
    for parameter in lit.parameters():
        nn.init.normal_(parameter, std=0.7)
    return lit


def direct_loss(net: nn.Module, ids: Tensor, context: int) -> float:
    """The definition: each character from those before it in its window, one at a time."""
    losses = []
    for at in range(1, len(ids)):
        window_start = (at - 1) - (at - 1) % context
        with torch.no_grad():
            logits = net(ids[None, window_start:at])[0, -1]
        losses.append(F.cross_entropy(logits.double(), ids[at]).item())
    return float(np.mean(losses))


@pytest.mark.parametrize("stage", ["val", "test"])
def test_the_evaluation_loss_is_exact_for_every_batch_size(
    open_text: Opener, lit: LitCharLM, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the Trainer, to 1e-5 nats; the last window of either split is a short one."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    found = []
    for batch_size, tokens in ((1, 1), (3, 24), (16, 100), (64, 8192)):
        monkeypatch.setattr(data, "EVALUATION_TOKENS", tokens)
        options = {"val_fraction": 0.3, "test_fraction": 0.3, "batch_size": batch_size}
        module = open_text(1003, context=8, alphabet=ALPHABET, **options)
        run = {"val": trainer.validate, "test": trainer.test}[stage]
        (metrics,) = run(lit, module, verbose=False)
        found.append(metrics[f"{stage}/loss"])
    part = vars(module.splits)[stage]
    assert (len(part) - 1) % 8
    expected = direct_loss(lit.net, module.tokens[part.start : part.stop].long(), 8)
    assert found == pytest.approx([expected] * len(found), abs=1e-5)


# What a checkpoint remembers


def test_what_is_remembered_opens_the_same_data(open_text: Opener) -> None:
    module = open_text(500, context=8, batch_size=4, seed=5, test_fraction=0.1)
    assert CharDataModule(**module.hparams | {"corpus": "gone"}).alphabet == module.alphabet
    again = CharDataModule(**module.hparams)
    again.open()
    assert (again.alphabet, again.splits) == (module.alphabet, module.splits)
    assert torch.equal(again.tokens, module.tokens)
    assert is_same(again.train_windows(3), module.train_windows(3))


def test_another_text_under_the_remembered_name_is_refused(open_text: Opener) -> None:
    """Unless its own sha256 is given."""
    module = open_text(501, context=8)
    remembered = dict(module.hparams)
    path = Path(remembered["corpus"])
    path.write_text(text_of(501)[::-1])
    with pytest.raises(InputError, match=remembered["sha256"]):
        CharDataModule(**remembered).open()
    remembered["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    CharDataModule(**remembered).open()


def test_after_a_fallback_the_sample_is_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_GPT_SCRATCH_DATA", str(tmp_path))
    monkeypatch.setattr(corpus, "RETRIES", 0)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", "http://127.0.0.1:1/nobody-serves-this")
    module = CharDataModule("tiny-shakespeare", context=8, fallback="sample", sample_size=2000)
    module.open()
    assert module.fell_back
    assert module.hparams["corpus"] == "sample"
    again = CharDataModule(**module.hparams)
    again.open()
    assert torch.equal(again.tokens, module.tokens)
    assert not again.fell_back


def test_a_checkpoints_alphabet_is_used_without_its_corpus() -> None:
    module = CharDataModule("a file that is gone.txt", alphabet="abc")
    module.setup("predict")
    assert module.alphabet == "abc"
    assert module.tokenizer.encode("cab").tolist() == [2, 0, 1]


def test_a_given_alphabet_is_the_one_encoded_with(open_text: Opener) -> None:
    module = open_text("cab" * 100, context=8, alphabet="abcd")
    assert module.alphabet == "abcd"
    assert module.tokens[:3].tolist() == [2, 0, 1]
    with pytest.raises(InputError, match=r"'d' .* alphabet of 3 characters"):
        open_text("cabd" * 100, context=8, alphabet="abc")


# Bad input


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context", 0),
        ("context", -8),
        ("context", 2**20 + 1),
        ("batch_size", 2**20 + 1),
        ("batch_size", 0),
        ("batch_size", -1),
        ("sample_size", 0),
        ("val_fraction", 0.0),
        ("val_fraction", -0.1),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("test_fraction", -0.1),
        ("test_fraction", 0.9),
        ("test_fraction", 1.0),
        ("test_fraction", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_value_out_of_range_is_named(option: str, value: float) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InputError, match=f"{option} is {value}"):
        CharDataModule("sample", **options)


@pytest.mark.parametrize(
    ("size", "two", "split"),
    [
        (80, (0.5, 0.0), "train"),
        (400, (0.1, 0.0), "val"),
        (400, (0.2, 0.1), "test"),
        (400, (1e-12, 0.0), "val"),
    ],
)
def test_a_context_longer_than_a_split_is_refused(
    open_text: Opener, size: int, two: tuple[float, float], split: str
) -> None:
    """A context takes one character more: the one after its last."""
    fractions: dict[str, Any] = {"val_fraction": two[0], "test_fraction": two[1]}
    length = len(vars(split_corpus(size, *two))[split])
    with pytest.raises(InputError, match=rf"context is 40, but the {split} split .* {length} char"):
        open_text(size, context=40, **fractions)
    if length:
        open_text(size, context=length - 1, **fractions)


def test_testing_without_a_test_split_is_refused(open_text: Opener) -> None:
    module = open_text(1000, context=8)
    with pytest.raises(InputError, match=r"no test split: .*--data.test_fraction"):
        module.setup("test")
    open_text(1000, context=8, test_fraction=0.1).setup("test")


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(open_text: Opener) -> None:
    module = open_text(1000, context=8, batch_size=15)
    module.trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False
    )
    with pytest.raises(InputError, match=r"batch_size is 15, .* 2"):
        module.train_dataloader()
