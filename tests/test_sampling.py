"""From logits to text: distributions, draws, and texts that depend on nothing beside them.

Shapes: B texts, T time, V alphabet size.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import random_ids, stirred
from torch import Tensor, nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, Bigram
from lit_gpt_scratch.sampling import (
    SamplingSettings,
    draw,
    generate,
    keep_top_k,
    next_distribution,
    uniforms,
)

SIZE, CONTEXT = 11, 6
LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)
TEMPERATURES = st.floats(0, allow_infinity=False, allow_nan=False)
some = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return stirred(GPT(SIZE, CONTEXT, layers=1, width=16))


def new_ids(net: nn.Module, prompt: Tensor, indices: list[int] | None = None, **how) -> Tensor:
    ids = generate(net, prompt, CONTEXT, SamplingSettings(**{"max_new_tokens": 20} | how), indices)
    assert torch.equal(ids[:, : prompt.size(1)], prompt)
    return ids[:, prompt.size(1) :]


# Distributions


@some
@given(LOGITS, TEMPERATURES, st.none() | st.integers(1, 20))
def test_a_distribution_is_one(logits: list[float], temperature: float, top_k: int | None) -> None:
    """At any temperature that SamplingSettings takes: finite, not negative, of sum 1."""
    SamplingSettings(temperature=temperature, top_k=top_k)
    found = next_distribution(torch.tensor([logits]), temperature, top_k)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert found.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-38, 1e38, 1e39, 1.7e308])
@pytest.mark.parametrize("top_k", [None, 2])
def test_the_ends_of_the_scale_stay_finite(temperature: float, top_k: int | None) -> None:
    """Also beyond fp32, in which the logits are: greedy at one end, uniform at the other."""
    found = next_distribution(torch.tensor([[1.0, 3.0, 2.0]]), temperature, top_k)
    kept = 3 if top_k is None else top_k
    likely = [0.0, 1.0, 0.0] if temperature < 1 else [1 / kept, 1 / kept, 1 / kept]
    if temperature > 1 and top_k:
        likely[0] = 0.0
    assert found[0].tolist() == pytest.approx(likely)


def test_temperature_1_is_the_models_own_distribution() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(next_distribution(logits, 1.0), logits.softmax(-1))
    torch.testing.assert_close(next_distribution(logits, 0.5), (2 * logits).softmax(-1))


def test_logits_in_half_precision_are_drawn_from_in_full() -> None:
    assert next_distribution(torch.zeros(1, 3, dtype=torch.bfloat16), 1.0).dtype == torch.float32


@some
@given(LOGITS)
def test_temperature_0_takes_the_likeliest(logits: list[float]) -> None:
    found = next_distribution(torch.tensor([logits]), 0.0)[0]
    assert found.tolist().count(1.0) == 1
    assert logits[found.argmax()] == max(logits)
    assert found.sum() == 1


@some
@given(st.permutations(range(9)), st.integers(1, 12))
def test_top_k_keeps_exactly_the_k_likeliest(logits: list[int], k: int) -> None:
    """Unchanged; a k above the alphabet keeps all."""
    kept = keep_top_k(torch.tensor([logits]).float(), k)[0].tolist()
    assert kept == [x if x >= 9 - k else -math.inf for x in logits]


def test_top_k_keeps_what_ties_with_the_kth() -> None:
    """Which of equals is left out would be an accident of their order."""
    kept = keep_top_k(torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, True, True], [True] * 4]


def test_top_k_1_is_greedy() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(next_distribution(logits, 0.7, 1), next_distribution(logits, 0.0))


# Draws


@pytest.mark.parametrize("across", ["indices", "draws"])
def test_frequencies_are_the_probabilities(across: str) -> None:
    """Over many texts' first draws as over one text's many: Pearson's chi-square."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 10.0, 0.5, 0.0])
    p, count = weights / weights.sum(), 20_000
    rows = uniforms(7, range(count), 1) if across == "indices" else uniforms(7, [3], count).T
    drawn = draw(p.expand(count, -1), rows)[:, 0]
    found = torch.bincount(drawn, minlength=len(p))
    assert not found[p == 0].any()
    expected = (p * count)[p > 0]
    chi_square = ((found[p > 0] - expected).square() / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    # Too good is not random either.
    assert chi_square > 0.1


@some
@given(
    st.lists(st.just(0.0) | st.floats(2**-100, 1, width=32), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.0, 2**-149, 2**-24, 0.5, 1 - 2**-24]),
)
def test_what_has_no_probability_is_never_drawn(weights: list[float], uniform: float) -> None:
    """Not at the ends of what `uniforms` gives, nor where rounding leaves the sum off 1."""
    p = torch.tensor([weights])
    p = p / p.sum()
    drawn = draw(p, torch.tensor([[uniform]])).item()
    assert p[0, drawn] > 0


def test_an_id_is_drawn_also_where_rounding_leaves_the_sum_off_1() -> None:
    """With the largest number that there is under 1, which sums fall short of, or go beyond."""
    p = (3 * torch.randn(2000, 65, generator=torch.Generator().manual_seed(0))).softmax(-1)
    p = torch.cat([p, torch.zeros(2000, 1)], dim=1)
    drawn = draw(p, torch.full((2000, 1), 1 - 2**-24))
    assert (p.cumsum(-1)[:, -1] < 1 - 2**-24).any()
    assert (drawn < 65).all()


def test_uniforms_are_from_0_to_1() -> None:
    found = uniforms(0, range(50), 2000)
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / found.numel()))


def test_uniforms_are_a_function_of_seed_and_index() -> None:
    """Whatever was drawn before, beside, or after."""
    both = uniforms(3, [5, 8], 40)
    torch.rand(7)
    assert torch.equal(uniforms(3, [8], 40)[0], both[1])
    assert torch.equal(uniforms(3, [5], 9)[0], both[0, :9])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(uniforms(4, [5], 40)[0], both[0])


# Texts


def test_a_text_depends_on_its_own_seed_and_index_alone(net: nn.Module) -> None:
    """Not on its batch: alone, beside others, and in another order it is the same."""
    prompts = random_ids(SIZE, 5, 4)
    together = new_ids(net, prompts)
    for i in range(5):
        assert torch.equal(new_ids(net, prompts[i : i + 1], [i])[0], together[i])
    order = [3, 0, 4, 1, 2]
    assert torch.equal(new_ids(net, prompts[order], order), together[order])


def test_another_seed_or_index_gives_another_text(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 1, 4)
    texts = [new_ids(net, prompt, [i], seed=s) for i, s in [(0, 1), (1, 1), (0, 2)]]
    assert len({tuple(text[0].tolist()) for text in texts}) == 3


def test_a_shorter_text_is_the_beginning_of_a_longer_one(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    long = new_ids(net, prompt, max_new_tokens=30)
    assert torch.equal(new_ids(net, prompt, max_new_tokens=9), long[:, :9])


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_of_a_long_prompt_the_last_part_counts(net: nn.Module, length: int) -> None:
    prompt = random_ids(SIZE, 2, length)
    assert torch.equal(new_ids(net, prompt), new_ids(net, prompt[:, -CONTEXT:]))


def test_greedy_texts_take_the_likeliest_each_time(net: nn.Module) -> None:
    prompt = random_ids(SIZE, 2, 4)
    ids = torch.cat([prompt, new_ids(net, prompt, temperature=0.0)], dim=1)
    for t in range(4, ids.size(1)):
        with torch.no_grad():
            likeliest = net(ids[:, max(0, t - CONTEXT) : t])[:, -1].argmax(-1)
        assert torch.equal(ids[:, t], likeliest)
    assert torch.equal(ids[:, 4:], new_ids(net, prompt, temperature=0.0, seed=9))


def test_texts_have_the_networks_own_transitions() -> None:
    """A bigram's text, counted pair by pair, gives its table back."""
    torch.manual_seed(0)
    net = Bigram(4, CONTEXT)
    nn.init.normal_(net.table.weight)
    ids = generate(net, random_ids(4, 50, 1), CONTEXT, SamplingSettings(max_new_tokens=200))
    pairs = torch.bincount((4 * ids[:, :-1] + ids[:, 1:]).flatten(), minlength=16).view(4, 4)
    p, count = net.table.weight.softmax(-1), pairs.sum(1, keepdim=True)
    error = (p * (1 - p) / count).sqrt()
    assert ((pairs / count - p).abs() < 4 * error).all()


def test_top_k_and_temperature_reach_the_draws(net: nn.Module) -> None:
    """Of the two likeliest alone; and a hot text differs from a cool one."""
    prompt = random_ids(SIZE, 2, 4)
    ids = torch.cat([prompt, new_ids(net, prompt, top_k=2)], dim=1)
    for t in range(4, ids.size(1)):
        with torch.no_grad():
            two = net(ids[:, max(0, t - CONTEXT) : t])[:, -1].topk(2).indices
        assert (two == ids[:, t : t + 1]).any(dim=1).all()
    hot, cool = (new_ids(net, prompt, temperature=t) for t in (2.0, 0.5))
    assert not torch.equal(hot, cool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**arguments)
