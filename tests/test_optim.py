"""Parameter groups, the optimizer against PyTorch's, the schedule's values."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import CONFIGS, random_ids, small
from torch import nn

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT
from lit_gpt_scratch.optim import AdamW, WarmupCosine, parameter_groups


def a_net() -> nn.Module:
    torch.manual_seed(0)
    return GPT(11, 7, layers=2, width=16)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on batches that are a function of their number."""
    for k in steps:
        ids = random_ids(11, 4, 8, seed=k)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ids[:, :-1]).mT, ids[:, 1:]).backward()
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_groups_hold_every_parameter_exactly_once(config) -> None:
    net = small(config).net
    grouped = [id(p) for group in parameter_groups(net) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_only_matrices_decay() -> None:
    """The embeddings are the tables and the unembedding; vectors are the norms."""
    net = a_net()
    optimizer = AdamW(parameter_groups(net), weight_decay=0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    found = {
        group["name"]: ({names[id(p)] for p in group["params"]}, group["weight_decay"])
        for group in optimizer.param_groups
    }
    tables = {"embed.0.character.weight", "embed.0.position.weight", "unembed.1.weight"}
    norms = {name for name in names.values() if "norm" in name} | {"unembed.0.weight"}
    assert found == {
        "matrices": (set(names.values()) - tables - norms, 0.1),
        "embeddings": (tables, 0.0),
        "vectors": (norms, 0.0),
    }


def test_decay_shrinks_a_matrix_and_nothing_else() -> None:
    """Without a gradient, AdamW does nothing but decay."""
    net = a_net()
    before = copy.deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(parameter_groups(net), lr=0.5, weight_decay=0.1).step()
    for name, weight in net.state_dict().items():
        matrix = ".attention." in name or ".feed_forward." in name
        torch.testing.assert_close(weight, before[name] * (0.95 if matrix else 1))


def test_ours_equals_pytorchs_plain_adamw() -> None:
    """The fused kernel, our argument names, our groups: all one with the loop of PyTorch."""
    ours, theirs = a_net(), a_net()
    train(ours, AdamW(parameter_groups(ours), 0.01, 0.8, 0.95, 0.3), range(6))
    decaying = [p for name, p in theirs.named_parameters() if ".attention." in name]
    decaying += [p for name, p in theirs.named_parameters() if ".feed_forward." in name]
    others = [p for p in theirs.parameters() if not any(p is q for q in decaying)]
    reference = torch.optim.AdamW(
        [{"params": decaying}, {"params": others, "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.95), weight_decay=0.3, foreach=False, fused=False,
    )  # fmt: skip
    train(theirs, reference, range(6))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been() -> None:
    """Network, optimizer and schedule through their state dicts: equal to the bit."""

    def parts() -> tuple[nn.Module, AdamW, WarmupCosine]:
        net = a_net()
        optimizer = AdamW(parameter_groups(net), lr=0.01)
        return net, optimizer, WarmupCosine(optimizer, steps=8, warmup=3)

    def go(net: nn.Module, optimizer: AdamW, schedule: WarmupCosine, steps: range) -> None:
        for k in steps:
            train(net, optimizer, range(k, k + 1))
            schedule.step()

    whole, interrupted, resumed = parts(), parts(), parts()
    go(*whole, range(8))
    go(*interrupted, range(4))
    for part, saved in zip(resumed, interrupted, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    go(*resumed, range(4, 8))
    for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0].unembed[1].weight, interrupted[0].unembed[1].weight)


def rates(steps: int, count: int, warmup: int, final: float, lr: float = 1.0) -> list[float]:
    """The learning rates of the first `count` steps of a run of `steps`."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = WarmupCosine(optimizer, steps, warmup, final)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_and_cosine_at_their_corners() -> None:
    found = rates(steps=110, count=120, warmup=10, final=0.1, lr=2.0)
    assert found[0] == pytest.approx(0.2)
    assert found[4] == pytest.approx(1.0)
    assert found[9] == pytest.approx(2.0)
    assert found[10] == pytest.approx(2.0)
    assert found[60] == pytest.approx(2 * (0.1 + 0.9 / 2))  # half of the way down
    assert found[85] == pytest.approx(2 * (0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2))
    assert found[110:] == pytest.approx([0.2] * 10)  # and stays there


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.floats(0, 1))
def test_the_rate_rises_to_the_peak_and_falls_to_the_final(
    steps: int, warmup: int, final: float
) -> None:
    """Also where the warm-up is longer than the run."""
    found = rates(steps, steps + warmup + 1, warmup, final)
    rise, fall = found[:warmup], found[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(fall))
    assert max(found) == pytest.approx(1)
    assert min(fall) >= final - 1e-12
    end = found[max(steps, warmup + 1) :]
    assert end == pytest.approx([final] * len(end))


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(lr: float) -> None:
    with pytest.raises(InputError, match=f"lr is {lr}"):
        AdamW(parameter_groups(a_net()), lr=lr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 0}, "warmup is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"final": -0.1}, "final is -0.1"),
        ({"final": 1.5}, "final is 1.5"),
        ({"final": math.nan}, "final is nan"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: dict[str, float], message: str) -> None:
    optimizer = AdamW(parameter_groups(a_net()))
    with pytest.raises(InputError, match=message):
        WarmupCosine(optimizer, steps=10, **arguments)
