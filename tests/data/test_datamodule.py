"""Tests of `datamodule.py`: batches through `CharDataModule`, and what checkpoints store of it."""

import functools
import hashlib
import itertools
import math
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
from laws import random_ids
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.data import corpus
from lit_gpt_scratch.data import windows as data_windows
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.data.windows import Batch, Windows, split_corpus
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import SingleHeadAttention
from lit_gpt_scratch.models.gpt import AttentionLM
from lit_gpt_scratch.training.module import LitCharLM

ALPHABET = "".join(map(chr, range(ord("0"), ord("z"))))

seeds, ks = st.integers(0, 2**32 - 1), st.integers(0, 2**63)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a corpus size, and options that split it into parts longer than the context."""
    context = draw(st.integers(1, 40))
    # context + 1 is enough, but rounding can make a split one character smaller.
    length = st.integers(context + 2, context + 200)
    train, val, test = draw(length), draw(length), draw(st.just(0) | length)
    size = train + val + test
    options = {"val_fraction": val / size, "test_fraction": test / size}
    return {"text": size, "context": context, **options}


Opener = Callable[..., CharDataModule]


def random_text(size: int) -> str:
    """Return a random text, so that windows differ."""
    letters = np.random.default_rng(size).integers(len(ALPHABET), size=size)
    return "".join(ALPHABET[letter] for letter in letters)


@pytest.fixture(scope="session")
def open_text(tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """Opens a data module on a given text, or on a random one of a given size."""
    folder = tmp_path_factory.mktemp("texts")

    def open_text(text: str | int, **options: Any) -> CharDataModule:
        text = random_text(text) if isinstance(text, int) else text
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.txt"
        path.write_text(text, encoding="utf-8", newline="")
        module = CharDataModule(str(path), **{"context": 64} | options)
        module.open()
        return module

    return open_text


def as_rank(
    module: CharDataModule,
    rank: int,
    world: int,
    global_step: int = 0,
    accumulate: int = 1,
    device: str = "cpu",
) -> CharDataModule:
    """Attach a trainer that reports this rank, number of processes, and kind of device."""
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="validate"),
        strategy=SimpleNamespace(root_device=torch.device(device)),
        global_rank=rank,
        world_size=world,
        global_step=global_step,
        accumulate_grad_batches=accumulate,
        overfit_batches=0,
    )
    module.trainer = trainer
    return module


def test_a_split_with_fewer_windows_than_ranks_is_refused(open_text: Opener) -> None:
    """Every rank refuses, so that none waits for the others."""
    module = open_text(300, context=10)  # 29 targets: two full windows and a shorter one
    for rank in range(3):
        with pytest.raises(InputError, match="too few for 3 processes"):
            as_rank(module, rank, 3).val_dataloader()
    assert all(len(as_rank(module, rank, 2).val_dataloader()) for rank in range(2))


def is_equal(first: Windows, second: Windows) -> bool:
    return torch.equal(first.starts, second.starts) and first[1:] == second[1:]


def target_counts(loader: Any, split: str) -> Counter[int]:
    """Count how often each position of the corpus is a target that counts, in a split's windows."""
    return Counter(
        start + offset
        for windows in loader
        if windows.split == split
        for i, start in enumerate(windows.starts.tolist())
        for offset in range(1, windows.length + 1)
        if windows.counted is None or offset > windows.length - windows.counted[i]
    )


# Splits


def test_tiny_shakespeare_is_split_as_in_nanogpt(
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


# Training batches


@given(seeds, ks, st.lists(ks, max_size=3))
def test_batch_k_does_not_depend_on_earlier_draws(
    open_text: Opener, seed: int, k: int, others: list[int]
) -> None:
    expected = open_text(1000, seed=seed).train_windows(k)
    module = open_text(1000, seed=seed)
    for other in others:
        module.train_windows(other)
        torch.rand(1)
        np.random.rand(1)  # noqa: NPY002
    assert is_equal(module.train_windows(k), expected)


def test_batch_k_never_changes(open_text: Opener) -> None:
    """Later versions must be able to repeat a run."""
    expected = {
        "passes": [38, 870, 830, 606, 510, 374],
        "random": [533, 182, 732, 28, 646, 588],  # of the first versions
    }
    for order, starts in expected.items():
        data = open_text(1000, seed=1337, context=8, batch_size=6, order=order)
        windows = data.train_windows(1)
        assert windows.starts.tolist() == starts
        assert windows.seed == 4_780_993_268_678_433_997


def test_batches_differ_between_seeds_and_numbers(open_text: Opener) -> None:
    batches = [
        open_text(10_000, seed=seed).train_windows(k)
        for seed, k in itertools.product([0, 1, 1337, 2**32 - 1], [0, 1, 2, 1337, 2**32, 2**63])
    ]
    assert len({tuple(batch.starts.tolist()) for batch in batches}) == len(batches)
    assert len({batch.seed for batch in batches}) == len(batches)


def share_of_rank(
    module: CharDataModule, k: int, rank: int, world: int, accumulate: int = 1
) -> Windows:
    """Batch k as the train loader of a rank gives it."""
    step, part = divmod(k, accumulate)
    loader = as_rank(module, rank, world, step, accumulate).train_dataloader()
    return next(itertools.islice(loader, part, None))


@pytest.mark.parametrize("order", ["passes", "random"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_divide_the_global_batch(open_text: Opener, world: int, order: str) -> None:
    module = open_text(1000, batch_size=12, order=order)
    rank_batches = [share_of_rank(module, 7, rank, world) for rank in range(world)]
    assert [len(share.starts) for share in rank_batches] == [12 // world] * world
    combined = torch.stack([share.starts for share in rank_batches], dim=1).flatten()
    full_batch = module.train_windows(7)
    assert torch.equal(combined, full_batch.starts)
    assert {share[1:] for share in rank_batches} == {full_batch[1:]}


@given(layouts(), seeds, ks)
def test_training_windows_lie_inside_the_training_split(
    open_text: Opener, layout: dict[str, Any], seed: int, k: int
) -> None:
    module = open_text(**layout, seed=seed, batch_size=1000)
    starts = module.train_windows(k).starts
    assert starts.min() >= 0
    assert starts.max() + module.context < len(module.splits.train)


def test_windows_in_random_order_are_uniformly_distributed(open_text: Opener) -> None:
    """Including the first and the last."""
    module = open_text(40, context=8, batch_size=1000, val_fraction=0.25, order="random")
    counts = torch.bincount(torch.cat([module.train_windows(k).starts for k in range(22)]))
    assert len(counts) == 30 - 8
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(InputError, match="order is 'shuffled': it must be passes or random"):
        CharDataModule(order="shuffled")  # type: ignore[arg-type]


def test_a_pass_reads_each_window_of_the_text_once(open_text: Opener) -> None:
    """Batches of 7 windows begin and end within passes of 24."""
    module = open_text(2050 * 10 // 9 + 1, context=80, batch_size=7)
    per_pass = (len(module.splits.train) - 80) // 80
    assert per_pass == 24
    starts = torch.cat([module.train_windows(k).starts for k in range(24)]).view(7, per_pass)
    phases = starts.min(dim=1).values
    expected = phases[:, None] + 80 * torch.arange(per_pass)
    assert torch.equal(starts.sort(dim=1).values, expected)
    assert len({tuple(order.tolist()) for order in starts - phases[:, None]}) == 7
    assert len(set(phases.tolist())) > 4


def test_over_many_passes_all_starts_are_equally_likely(open_text: Opener) -> None:
    """The first window of a pass begins at each position of the text equally often."""
    module = open_text(80, context=8, batch_size=1, val_fraction=0.12)
    per_pass = (len(module.splits.train) - 8) // 8
    first = [module.train_windows(per_pass * k).starts.item() for k in range(6400)]
    counts = torch.bincount(torch.tensor(first))
    assert len(counts) == 8 * per_pass
    assert (counts - 6400 / len(counts)).abs().max() < 5 * 100**0.5


@pytest.mark.parametrize("order", ["passes", "random"])
@pytest.mark.parametrize("world", [1, 2])
def test_accumulated_batches_have_the_windows_of_one_larger_batch(
    open_text: Opener, world: int, order: str
) -> None:
    large, small = (open_text(1000, batch_size=size, order=order) for size in (24, 8))
    for step in (0, 5):
        rank_batches = [
            torch.stack([share_of_rank(small, k, r, world, 3).starts for r in range(world)], dim=1)
            for k in range(3 * step, 3 * step + 3)
        ]
        assert torch.equal(torch.cat(rank_batches).flatten(), large.train_windows(step).starts)


def test_accumulated_batches_have_different_dropout_seeds(open_text: Opener) -> None:
    """The seeds are far apart, because ranks are added to them."""
    seeds = [open_text(1000).train_windows(k, parts=3).seed for k in range(6)]
    assert min(abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]) > 1_000_000


@pytest.mark.parametrize(("rank", "world", "step", "accumulate"), [(0, 1, 0, 1), (1, 2, 5, 3)])
def test_the_train_loader_continues_at_the_global_step(
    open_text: Opener, rank: int, world: int, step: int, accumulate: int
) -> None:
    module = as_rank(open_text(1000), rank, world, step, accumulate)
    for k, windows in zip(range(4), module.train_dataloader(), strict=False):
        k += step * accumulate
        full_batch = module.train_windows(k, parts=accumulate)
        assert torch.equal(windows.starts, full_batch.starts[rank::world])
        assert windows[1:] == full_batch[1:]


@pytest.mark.parametrize("text", [random_text(200), "".join(map(chr, range(200, 900)))])
def test_targets_are_the_next_characters(open_text: Opener, text: str) -> None:
    """Also for alphabets of more than 256 characters."""
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
def test_every_character_but_the_first_is_evaluated_exactly_once(
    open_text: Opener, layout: dict[str, Any], batch: int
) -> None:
    module = open_text(**layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_windows, "MAX_EVAL_TOKENS", batch)
        assert target_counts(module.val_dataloader(), "val") == Counter(module.splits.val[1:])
        loaded = list(module.val_dataloader())
        if module.splits.test:
            assert target_counts(module.test_dataloader(), "test") == Counter(
                module.splits.test[1:]
            )
            loaded += module.test_dataloader()
        for windows in loaded:
            assert 1 <= windows.length <= module.context
            assert len(windows.starts) * windows.length <= max(batch, windows.length)


@pytest.mark.parametrize("world", [1, 2])
def test_a_cuda_gpu_evaluates_the_same_windows_in_larger_batches(
    open_text: Opener, world: int
) -> None:
    """The Trainer knows the device; no GPU was there. The strided evaluation is included."""
    module = open_text(100_000, context=8, val_fraction=0.45, test_fraction=0.45, stride=5)
    found: dict[str, list[list[Windows]]] = {}
    for device in ("cpu", "cuda"):
        module = as_rank(module, 0, world, device=device)
        loaders = [module.val_dataloader(), module.test_dataloader()]
        found[device] = [list(loader) for loader in loaders]
    for on_cpu, on_cuda in zip(found["cpu"], found["cuda"], strict=True):
        assert max(len(windows.starts) for windows in on_cpu) == 1024
        assert 4096 < max(len(windows.starts) for windows in on_cuda) <= 8192
        for split in {windows.split for windows in on_cpu}:
            starts = [
                torch.cat([windows.starts for windows in batches if windows.split == split])
                for batches in (on_cpu, on_cuda)
            ]
            assert torch.equal(*starts)


@given(layouts())
def test_the_train_slice_lies_inside_the_training_split(
    open_text: Opener, layout: dict[str, Any]
) -> None:
    module = open_text(**layout)
    slice_of_train = target_counts(module.val_dataloader(), "train sample")
    assert slice_of_train
    assert set(slice_of_train) <= set(module.splits.train)
    assert set(slice_of_train.values()) == {1}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_divide_the_evaluation_windows(
    open_text: Opener, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks get as many batches, but no window counts twice: that would change the mean."""
    monkeypatch.setattr(data_windows, "MAX_EVAL_TOKENS", 24)
    module = open_text(1003, context=8, test_fraction=0.2, stride=3)
    for loader in ("val_dataloader", "test_dataloader"):
        alone = list(getattr(as_rank(module, 0, 1), loader)())
        shares = [list(getattr(as_rank(module, rank, world), loader)()) for rank in range(world)]
        assert len({tuple(windows.split for windows in share) for share in shares}) == 1
        assert all(len(windows.starts) for share in shares for windows in share)
        for split in {windows.split for windows in alone}:
            combined = sum((target_counts(share, split) for share in shares), Counter())
            assert combined == target_counts(alone, split)


@pytest.fixture
def lit() -> LitCharLM:
    """A model with random weights, large enough that losses differ between characters."""
    torch.manual_seed(0)
    net = functools.partial(AttentionLM, attention=SingleHeadAttention, width=16)
    lit = LitCharLM(net, alphabet=ALPHABET, context=8)
    for parameter in lit.parameters():
        nn.init.normal_(parameter, std=0.7)
    return lit


def direct_loss(net: nn.Module, ids: Tensor, context: int) -> float:
    """Compute the mean loss by its definition, one character at a time."""
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
    """Through the Trainer, to 1e-5 nats; both splits end with a shorter window."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    found = []
    for batch_size, tokens in ((1, 1), (3, 24), (16, 100), (64, 8192), (2, 65_536)):
        monkeypatch.setattr(data_windows, "MAX_EVAL_TOKENS", tokens)
        options = {"val_fraction": 0.3, "test_fraction": 0.3, "batch_size": batch_size}
        module = open_text(1003, context=8, alphabet=ALPHABET, **options)
        run = {"val": trainer.validate, "test": trainer.test}[stage]
        (metrics,) = run(lit, module, verbose=False)
        found.append(metrics[f"{stage}/loss"])
    part = vars(module.splits)[stage]
    assert (len(part) - 1) % 8
    expected = direct_loss(lit.net, module.tokens[part.start : part.stop].long(), 8)
    assert found == pytest.approx([expected] * len(found), abs=1e-5)


def test_a_batch_in_which_nothing_counts_does_not_change_a_loss(lit: LitCharLM) -> None:
    """A process reads one if the others have more windows."""
    ids = random_ids(len(ALPHABET), 3, 9)
    batch = Batch(ids[:, :-1], ids[:, 1:], 0, "val")
    nothing = batch._replace(counted=torch.zeros_like(batch.inputs, dtype=torch.bool))
    lit.validation_step(batch, 0)
    loss = lit.mean_losses["val"].compute()
    assert lit.validation_step(nothing, 1)["losses"].shape == (0,)
    assert lit.mean_losses["val"].compute() == loss > 0


# Hyperparameters that checkpoints store


def test_stored_hyperparameters_reproduce_the_data(open_text: Opener) -> None:
    module = open_text(500, context=8, batch_size=4, seed=5, test_fraction=0.1)
    assert CharDataModule(**module.hparams | {"corpus": "gone"}).alphabet == module.alphabet
    again = CharDataModule(**module.hparams)
    again.open()
    assert (again.alphabet, again.splits) == (module.alphabet, module.splits)
    assert torch.equal(again.tokens, module.tokens)
    assert is_equal(again.train_windows(3), module.train_windows(3))


def test_a_changed_text_under_the_stored_name_is_refused(open_text: Opener) -> None:
    """Unless its sha256 is given."""
    module = open_text(501, context=8)
    stored = dict(module.hparams)
    path = Path(stored["corpus"])
    path.write_text(random_text(501)[::-1], encoding="utf-8")
    with pytest.raises(InputError, match=stored["sha256"]):
        CharDataModule(**stored).open()
    stored["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    CharDataModule(**stored).open()


def test_after_a_fallback_the_sample_is_stored(
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


def test_a_given_alphabet_needs_no_corpus() -> None:
    module = CharDataModule("a file that is gone.txt", alphabet="abc")
    module.setup("predict")
    assert module.alphabet == "abc"
    assert module.tokenizer.encode("cab").tolist() == [2, 0, 1]


def test_a_given_alphabet_is_used_for_encoding(open_text: Opener) -> None:
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
    ("size", "pair", "split"),
    [
        (80, (0.5, 0.0), "train"),
        (400, (0.1, 0.0), "val"),
        (400, (0.2, 0.1), "test"),
        (400, (1e-12, 0.0), "val"),
    ],
)
def test_a_context_longer_than_a_split_is_refused(
    open_text: Opener, size: int, pair: tuple[float, float], split: str
) -> None:
    """A split needs one more character than the context: the last target."""
    fractions: dict[str, Any] = {"val_fraction": pair[0], "test_fraction": pair[1]}
    length = len(vars(split_corpus(size, *pair))[split])
    with pytest.raises(InputError, match=rf"context is 40, but the {split} split .* {length} char"):
        open_text(size, context=40, **fractions)
    if length:
        open_text(size, context=length - 1, **fractions)


def test_the_test_stage_needs_a_test_split(open_text: Opener) -> None:
    module = open_text(1000, context=8)
    with pytest.raises(InputError, match=r"no test split: .*--data.test_fraction"):
        module.setup("test")
    open_text(1000, context=8, test_fraction=0.1).setup("test")


def test_a_batch_size_that_is_no_multiple_of_the_world_size_is_refused(open_text: Opener) -> None:
    module = open_text(1000, context=8, batch_size=15)
    module.trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False
    )
    with pytest.raises(InputError, match=r"batch_size is 15, .* 2"):
        module.train_dataloader()


@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 300), st.integers(1, 4))
def test_the_strided_evaluation_counts_each_character_once(
    open_text: Opener, context: int, stride: int, extra: int, world: int
) -> None:
    """Each but the first ones has at least context - stride characters before it."""
    stride = min(stride, context - 1)
    module = open_text(10 * (context * world + 1) + extra, context=context, stride=stride)
    val, found = module.splits.val, Counter[int]()
    for rank in range(world):
        for windows in as_rank(module, rank, world).val_dataloader():
            if windows.split == "val_strided":
                assert windows.length == context
                for start, count in zip(windows.starts, windows.counted, strict=True):
                    found.update(range(start + context - count + 1, start + context + 1))
                    assert start == val.start or context - count >= context - stride
    assert found == Counter(val[1:])


def test_a_stride_outside_the_context_is_refused() -> None:
    for stride in (0, 8, -1):
        with pytest.raises(InputError, match=f"stride is {stride}: it must be"):
            CharDataModule(context=8, stride=stride)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_the_strided_loss_is_exact(
    open_text: Opener, lit: LitCharLM, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one window for each character, as its definition says; the plain loss stays."""
    monkeypatch.setattr(data_windows, "MAX_EVAL_TOKENS", 40)  # several batches
    options = {"val_fraction": 0.3, "test_fraction": 0.3, "alphabet": ALPHABET}
    module = open_text(1003, context=8, stride=3, **options)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    run = {"val": trainer.validate, "test": trainer.test}[stage]
    (metrics,) = run(lit, module, verbose=False)
    part = vars(module.splits)[stage]
    ids, losses = module.tokens[part.start : part.stop].long(), []
    for at in range(1, len(ids)):
        # The window's end is the first of 8, 11, 14, ... that is not before the target.
        end = min(max(8, 8 + math.ceil((at - 8) / 3) * 3), len(ids) - 1)
        with torch.no_grad():
            logits = lit.net(ids[None, end - 8 : at])[0, -1]
        losses.append(F.cross_entropy(logits.double(), ids[at]).item())
    assert metrics[f"{stage}_strided/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    expected = direct_loss(lit.net, ids, 8)
    assert metrics[f"{stage}/loss"] == pytest.approx(expected, abs=1e-5)
