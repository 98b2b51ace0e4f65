"""Parameter groups, optimizers compared with PyTorch's, and the values of the schedules."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import CONFIGS, random_ids, small, with_random_weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import GPT, Ensemble
from lit_gpt_scratch.training import AdamW, Muon, WarmupCosine, WarmupStableDecay
from lit_gpt_scratch.training.hardware import multiplies_bf16
from lit_gpt_scratch.training.muon import orthogonalize
from lit_gpt_scratch.training.optim import parameter_groups

STEEP = (3.4445, -4.775, 2.0315)  # the polynomial a s + b s^3 + c s^5 of Jordan et al. 2024


def build_net() -> nn.Module:
    torch.manual_seed(0)
    return GPT(11, 7, layers=2, width=16)


def is_matrix(name: str) -> bool:
    """Return whether a parameter is a matrix of a block: no embedding and no vector."""
    return ".attention." in name or ".feed_forward." in name


def batch_loss(net: nn.Module, k: int) -> Tensor:
    """Return the loss on batch number k."""
    ids = random_ids(11, 4, 8, seed=k)
    return nn.functional.cross_entropy(net(ids[:, :-1]).mT, ids[:, 1:])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        optimizer.zero_grad()
        batch_loss(net, k).backward()
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_groups_hold_every_parameter_exactly_once(config) -> None:
    net = small(config).net
    grouped = [id(p) for group in parameter_groups(net) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_only_matrices_decay() -> None:
    """Embeddings include the unembedding; vectors are the gains of the norms."""
    net = build_net()
    optimizer = AdamW(parameter_groups(net), weight_decay=0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    found = {
        group["name"]: ({names[id(p)] for p in group["params"]}, group["weight_decay"])
        for group in optimizer.param_groups
    }
    tables = {"embed.character.weight", "embed.position.weight", "unembed.1.weight"}
    norms = {name for name in names.values() if "norm" in name} | {"unembed.0.weight"}
    assert found == {
        "matrices": (set(names.values()) - tables - norms, 0.1),
        "embeddings": (tables, 0.0),
        "vectors": (norms, 0.0),
    }


def test_an_ensemble_groups_the_parameters_of_its_members_as_each_member_would() -> None:
    net = Ensemble(11, 7, partial(GPT, layers=1, width=16), size=2)
    alone, together = parameter_groups(net.members[1]), parameter_groups(net)
    for one, all_ in zip(alone, together, strict=True):
        assert one["name"] == all_["name"]
        assert [id(p) for p in one["params"]] == [id(p) for p in all_["params"]][
            -len(one["params"]) :
        ]


def test_decay_shrinks_a_matrix_and_nothing_else() -> None:
    """With a gradient of zero, AdamW only applies the weight decay."""
    net = build_net()
    before = copy.deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(parameter_groups(net), lr=0.5, weight_decay=0.1).step()
    for name, weight in net.state_dict().items():
        torch.testing.assert_close(weight, before[name] * (0.95 if is_matrix(name) else 1))


def test_adamw_equals_pytorchs_unfused_adamw() -> None:
    """In spite of the fused kernel, other argument names and parameter groups."""
    ours, theirs = build_net(), build_net()
    train(ours, AdamW(parameter_groups(ours), 0.01, 0.8, 0.95, 0.3), range(6))
    decaying = [p for name, p in theirs.named_parameters() if is_matrix(name)]
    others = [p for name, p in theirs.named_parameters() if not is_matrix(name)]
    reference = torch.optim.AdamW(
        [{"params": decaying}, {"params": others, "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.95), weight_decay=0.3, foreach=False, fused=False,
    )  # fmt: skip
    train(theirs, reference, range(6))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 3), st.floats(-5, 5))
def test_orthogonalize_changes_only_singular_values(
    rows: int, wider: int, count: int, size: float
) -> None:
    """The singular vectors stay, whatever the scale of a matrix and of the others in its stack.

    In double precision, the new singular values are the polynomial's, applied five times. In bf16
    they lie between 0.6 and 1.3. The old ones differ by up to a factor of 50.
    """
    torch.manual_seed(rows + 10 * wider)
    left, _ = torch.linalg.qr(torch.randn(count, rows, rows, dtype=torch.double))
    right, _ = torch.linalg.qr(torch.randn(count, rows + wider, rows, dtype=torch.double))
    values = 50 ** -torch.rand(count, rows, dtype=torch.double)
    scale = 10**size * torch.arange(1, count + 1)[:, None, None]
    matrices = scale * (left * values[:, None]) @ right.mT
    after = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        after = sum(c * after**power for c, power in zip(STEEP, (1, 3, 5), strict=True))
    exact = (left * after[:, None]) @ right.mT
    torch.testing.assert_close(orthogonalize(matrices, dtype=torch.double), exact)
    tall = orthogonalize(matrices.mT, dtype=torch.double)
    torch.testing.assert_close(tall, exact.mT)
    assert tall.is_contiguous()
    rounded = orthogonalize(matrices)
    assert rounded.dtype == torch.double
    found = torch.linalg.svdvals(rounded)
    assert found.min() > 0.6
    assert found.max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalize_maps_a_zero_gradient_to_zero(dtype: torch.dtype) -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), dtype=dtype), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("longest", [math.inf, 0.05], ids=["unclipped", "clipped"])
def test_muon_equals_pytorchs_muon_and_adamw(longest: float) -> None:
    """After each step from the same gradient, on tall, wide and square matrices.

    Embeddings and vectors are equal up to fp32 rounding. Matrices are bit-identical if stacked and
    single products add up in the same order, as on the machine of this test's author. Otherwise a
    bf16 number may round the other way: an error of 2^-8, which the polynomial's slope of 3.4 makes
    2 percent. Without bf16 hardware, our optimizer iterates in fp32: a direction without gradient
    is then exactly zero, but noise in PyTorch's (14 percent of a step).
    """
    ours = with_random_weights(build_net())
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer = Muon(
        parameter_groups(ours), lr=0.05, momentum=0.8, weight_decay=1.0, adamw_lr=0.03,
        beta1=0.7, beta2=0.9,
    )  # fmt: skip
    matrices = [p for name, p in theirs.named_parameters() if is_matrix(name)]
    others = [p for name, p in theirs.named_parameters() if not is_matrix(name)]
    references = [
        torch.optim.Muon(matrices, lr=0.05, momentum=0.8, weight_decay=1.0),
        torch.optim.AdamW(
            others, lr=0.03, betas=(0.7, 0.9), weight_decay=0.0, foreach=False, fused=False
        ),
    ]
    shapes = {(rows > columns) - (rows < columns) for rows, columns in (m.shape for m in matrices)}
    assert shapes == {-1, 0, 1}
    tolerance = 0.02 if multiplies_bf16("cpu") else 0.25
    for k in range(6):
        optimizer.zero_grad()
        batch_loss(ours, k).backward()
        nn.utils.clip_grad_norm_(ours.parameters(), longest)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = one.grad.clone()
        optimizer.step()
        for reference in references:
            reference.step()
        before = dict(start.named_parameters())
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if is_matrix(name):
                way = (other - before[name]).norm()
                assert (one - other).norm() < tolerance * way, (k, name)
            else:
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_muon_in_fp32_equals_a_loop_over_matrices() -> None:
    """One matrix at a time, never transposed."""
    net = with_random_weights(build_net())
    optimizer = Muon(
        parameter_groups(net), lr=0.05, momentum=0.9, weight_decay=0.5, iterations=4, exact=True
    )
    expected = {name: p.detach().clone() for name, p in net.named_parameters() if is_matrix(name)}
    means = {name: torch.zeros_like(p) for name, p in expected.items()}
    a, b, c = STEEP
    for k in range(5):
        train(net, optimizer, range(k, k + 1))
        for name, p in net.named_parameters():
            if not is_matrix(name):
                continue
            means[name] = 0.9 * means[name] + 0.1 * p.grad
            x = 0.9 * means[name] + 0.1 * p.grad
            x = x / x.square().sum().sqrt()
            for _ in range(4):
                square = x @ x.T
                x = a * x + b * square @ x + c * square @ square @ x
            rows, columns = p.shape
            further = math.sqrt(rows / columns) if rows > columns else 1
            expected[name] = (1 - 0.05 * 0.5) * expected[name] - 0.05 * further * x
            torch.testing.assert_close(p.detach(), expected[name], atol=1e-5, rtol=1e-4)


class CountKernels(TorchDispatchMode):
    """Counts the operations that compute something: on a GPU, each is one launch or a few."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_a_step_of_muon_launches_as_many_kernels_for_many_matrices_as_for_few() -> None:
    """And one more with weight decay: without, it does not multiply all weights by 1."""
    counts = {}
    for layers, weight_decay in ((1, 0.0), (3, 0.0), (3, 0.1)):
        net = GPT(11, 7, layers=layers, width=16)
        optimizer = Muon(parameter_groups(net), weight_decay=weight_decay)
        train(net, optimizer, range(1))  # makes the state
        with CountKernels() as mode:
            optimizer.step()
        counts[layers, weight_decay] = mode.count
    assert counts[1, 0.0] == counts[3, 0.0] == counts[3, 0.1] - 1


def test_muon_ignores_the_length_of_a_gradient() -> None:
    """So clipping does not change the first step."""
    nets = [with_random_weights(build_net()) for _ in range(2)]
    for net, longest in zip(nets, (math.inf, 1e-3), strict=True):
        batch_loss(net, 0).backward()
        assert nn.utils.clip_grad_norm_(net.parameters(), longest) > 0.1
        Muon(parameter_groups(net), exact=True).step()
    for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if is_matrix(name):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_only_the_group_matrices_uses_muon() -> None:
    """All other groups use AdamW, also for 2-D parameters."""
    net = build_net()
    optimizer = Muon(parameter_groups(net))
    train(net, optimizer, range(1))
    for name, parameter in net.named_parameters():
        adamw = {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[parameter].keys() == (
            {"momentum_buffer"} if is_matrix(name) else adamw
        )
    one, other = (nn.Parameter(torch.eye(4)) for _ in range(2))
    one.grad = other.grad = torch.arange(16.0).view(4, 4)
    Muon([{"params": [one]}], adamw_lr=0.1).step()
    torch.optim.AdamW([other], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0).step()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("optimizer_class", [AdamW, Muon])
@pytest.mark.parametrize(
    "idle",
    [("blocks.0.attention.qkv",), ("embed.position",), (".attention.", ".feed_forward."), ("",)],
    ids=["a matrix", "a table", "all matrices", "all"],
)
def test_a_parameter_without_a_gradient_does_not_change(
    optimizer_class: type[torch.optim.Optimizer], idle: tuple[str, ...]
) -> None:
    """It does not decay either."""
    net = build_net()
    before = copy.deepcopy(net.state_dict())
    optimizer = optimizer_class(parameter_groups(net), weight_decay=0.5)
    batch_loss(net, 0).backward()
    for name, parameter in net.named_parameters():
        if any(part in name for part in idle):
            parameter.grad = None
    optimizer.step()
    for name, parameter in net.named_parameters():
        left = parameter.grad is None
        assert torch.equal(parameter, before[name]) == left, name
        assert (parameter in optimizer.state) == (not left), name


@pytest.mark.parametrize("optimizer_class", [AdamW, Muon])
def test_step_calls_the_closure_with_gradients_enabled(
    optimizer_class: type[torch.optim.Optimizer],
) -> None:
    """Lightning passes a whole training step as a closure."""
    ours, theirs = build_net(), build_net()
    optimizer = optimizer_class(parameter_groups(ours))

    def closure() -> float:
        optimizer.zero_grad()
        loss = batch_loss(ours, 0)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == batch_loss(theirs, 0).item()
    train(theirs, optimizer_class(parameter_groups(theirs)), range(1))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("optimizer_class", "schedule_class"), [(AdamW, WarmupCosine), (Muon, WarmupStableDecay)]
)
def test_a_resumed_optimizer_equals_an_uninterrupted_one(
    optimizer_class: type[torch.optim.Optimizer], schedule_class: Callable[..., LRScheduler]
) -> None:
    """Network, optimizer and schedule are bit-identical after saving and loading plain data."""

    def parts() -> list[nn.Module | torch.optim.Optimizer | LRScheduler]:
        net = build_net()
        optimizer = optimizer_class(parameter_groups(net), lr=0.01, weight_decay=0.1)
        return [net, optimizer, schedule_class(optimizer, steps=8, warmup=3)]

    def go(net: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: range):
        for k in steps:
            train(net, optimizer, range(k, k + 1))
            schedule.step()

    whole, interrupted, resumed = parts(), parts(), parts()
    go(*whole, range(8))
    go(*interrupted, range(4))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in interrupted], file)
    file.seek(0)
    for part, saved in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
    go(*resumed, range(4, 8))
    for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0].unembed[1].weight, interrupted[0].unembed[1].weight)


def test_a_loaded_state_is_on_the_device_of_the_parameters() -> None:
    """Whatever device it was saved on, because a fused kernel needs one device."""
    net = build_net()
    optimizer = Muon(parameter_groups(net))
    train(net, optimizer, range(1))
    elsewhere = Muon(parameter_groups(copy.deepcopy(net).to("meta")))
    elsewhere.load_state_dict(optimizer.state_dict())
    for state in elsewhere.state.values():
        assert {value.device.type for value in state.values()} == {"meta"}


def rates(
    count: int, make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float = 1.0
) -> list[float]:
    """Return the learning rates of the first `count` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_values_of_warmup_cosine() -> None:
    found = rates(120, lambda o: WarmupCosine(o, steps=110, warmup=10, final=0.1), lr=2.0)
    assert found[0] == pytest.approx(0.2)
    assert found[4] == pytest.approx(1.0)
    assert found[9] == pytest.approx(2.0)
    assert found[10] == pytest.approx(2.0)
    assert found[60] == pytest.approx(2 * (0.1 + 0.9 / 2))  # half of the way down
    assert found[85] == pytest.approx(2 * (0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2))
    assert found[110:] == pytest.approx([0.2] * 10)  # and stays there


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.floats(0, 1))
def test_warmup_cosine_rises_to_the_peak_and_falls_to_the_final_rate(
    steps: int, warmup: int, final: float
) -> None:
    """Also if the warm-up is longer than the run."""
    found = rates(steps + warmup + 1, lambda o: WarmupCosine(o, steps, warmup, final))
    rise, fall = found[:warmup], found[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(fall))
    assert max(found) == pytest.approx(1)
    assert min(fall) >= final - 1e-12
    end = found[max(steps, warmup + 1) :]
    assert end == pytest.approx([final] * len(end))


def test_values_of_warmup_stable_decay() -> None:
    found = rates(120, lambda o: WarmupStableDecay(o, steps=100, warmup=10, decay=0.4), lr=2.0)
    assert found[0] == pytest.approx(0.2)
    assert found[4] == pytest.approx(1.0)
    assert found[9:60] == [2.0] * 51
    assert found[70] == pytest.approx(1.5)
    assert found[99] == pytest.approx(0.05)
    assert found[100:] == [0.0] * 20


@given(st.integers(1, 80), st.integers(1, 40), st.floats(0.01, 1))
def test_warmup_stable_decay_falls_in_a_straight_line_to_zero(
    steps: int, warmup: int, decay: float
) -> None:
    """If the warm-up is long, the line begins without a plateau. After the last step it is zero."""
    found = rates(steps + 1, lambda o: WarmupStableDecay(o, steps, warmup, decay))
    top = max(found)
    first, last = found.index(top), len(found) - 1 - found[::-1].index(top)
    assert found[0] == 1 / warmup
    assert found[:first] == pytest.approx([(k + 1) / warmup for k in range(first)])
    assert found[first : last + 1] == [top] * (last + 1 - first)
    slope = 1 / (decay * steps)
    assert found[last + 1 :] == pytest.approx(
        [slope * (steps - k) for k in range(last + 1, steps + 1)]
    )
    assert found[steps] == 0 < found[steps - 1]
    if warmup <= steps * (1 - decay):
        assert top == 1
        assert first == warmup - 1
        assert last == pytest.approx(steps * (1 - decay), abs=1)


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    ("optimizer_class", "name"), [(AdamW, "lr"), (Muon, "lr"), (Muon, "adamw_lr")]
)
def test_an_invalid_learning_rate_is_refused(
    optimizer_class: type[torch.optim.Optimizer], name: str, lr: float
) -> None:
    with pytest.raises(InputError, match=f"^{name} is {lr}"):
        optimizer_class(parameter_groups(build_net()), **{name: lr})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("beta1", 1.0),
        ("beta1", -0.1),
        ("beta2", 1.5),
        ("beta2", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("iterations", 0),
        ("iterations", -5),
    ],
)
def test_an_invalid_argument_of_muon_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} is {value}"):
        Muon(parameter_groups(build_net()), **{name: value})


@pytest.mark.parametrize(
    ("schedule_class", "name", "value"),
    [
        (WarmupCosine, "warmup", 0),
        (WarmupCosine, "warmup", -1),
        (WarmupCosine, "final", -0.1),
        (WarmupCosine, "final", 1.5),
        (WarmupCosine, "final", math.nan),
        (WarmupStableDecay, "warmup", 0),
        (WarmupStableDecay, "warmup", -1),
        (WarmupStableDecay, "decay", 0.0),
        (WarmupStableDecay, "decay", -0.5),
        (WarmupStableDecay, "decay", 1.5),
        (WarmupStableDecay, "decay", math.nan),
    ],
)
def test_an_invalid_argument_of_a_schedule_is_refused_by_name(
    schedule_class: Callable[..., LRScheduler], name: str, value: float
) -> None:
    optimizer = AdamW(parameter_groups(build_net()))
    with pytest.raises(InputError, match=f"^{name} is {value}"):
        schedule_class(optimizer, steps=10, **{name: value})
