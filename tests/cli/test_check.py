"""`check` says which law a new attention breaks; for each law there is one that breaks it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.check import LAWS, build, check
from lit_gpt_scratch.models import GPT, MultiHeadAttention, causal_softmax
from lit_gpt_scratch.models.kv_cache import KVCache


class WrongAxis(MultiHeadAttention):
    """Softmax over the queries: a later character changes the weights of an earlier query."""

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-2).tril(k.size(-2) - q.size(-2))


class OneLength(MultiHeadAttention):
    """Depends on the length of the text."""

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().forward(x, cache) * x.size(1)


class Unused(MultiHeadAttention):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.forgotten = nn.Parameter(torch.ones(width))


class OwnPast(MultiHeadAttention):
    """Forgets the cache."""

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().forward(x)


class Wider(MultiHeadAttention):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return torch.nn.functional.pad(super().forward(x, cache), (0, 1))


class Pair(MultiHeadAttention):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Any:
        return super().forward(x, cache), None


class NotANumber(MultiHeadAttention):
    """The softmax of a row in which every score is -inf."""

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        scores = (q @ k.transpose(-2, -1)).tril(k.size(-2) - q.size(-2) - 1)
        return scores.masked_fill(scores == 0, -torch.inf).softmax(-1)


class NoLogits(nn.Module):
    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet_size, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids)


class FullLength(MultiHeadAttention):
    """Raises an exception for a text that is shorter than the context."""

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().forward(x, cache) if x.size(1) == 12 else torch.cat([x, x[..., :3]])


class Negative(MultiHeadAttention):
    """Rows sum to 1, but not all weights are positive."""

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        return 2 * causal_softmax(scores) - causal_softmax(1000 * scores)


class Plain(nn.Module):
    """An attention without a cache and without weights."""

    def __init__(self, width: int, *, scale: float, rate=0.5) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.value = nn.Linear(width, width)
        self.scale, self.rate = scale, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.scale * self.rate


class Loud(nn.Module):
    """A network that prefers some characters before training."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet_size, alphabet_size)
        self.scale = nn.Parameter(torch.full((1,), 5.0))

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * self.scale


class Noisy(MultiHeadAttention):
    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().forward(x, cache) + 1e-6 * torch.randn_like(x)


class Differential(MultiHeadAttention):
    """The difference of two softmax maps (Ye et al. 2024, arXiv 2410.05258)."""

    weights_sum_to_1: ClassVar[bool] = False

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        (q1, q2), (k1, k2) = q.chunk(2, -1), k.chunk(2, -1)
        scores = q1 @ k1.transpose(-2, -1), q2 @ k2.transpose(-2, -1)
        return causal_softmax(scores[0]) - 0.5 * causal_softmax(scores[1])


class Undeclared(Differential):
    weights_sum_to_1: ClassVar[bool] = True


class Deaf(nn.Module):
    """A network that cannot learn: it gives all characters the same logit."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet_size, alphabet_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * 1e-9


def broken(kind: Any) -> dict[str, str]:
    net, _ = build(kind, [])
    return {name: said for name, said in check(net).items() if said}


@pytest.mark.parametrize(
    ("kind", "law", "words"),
    [
        (OneLength, "shape", "has other logits than the same beginning of 12"),
        (WrongAxis, "causal", "changed the logits at"),
        (Undeclared, "weights", "set weights_sum_to_1 = False in the class"),
        (Negative, "weights", "(the smallest is -0."),
        (FullLength, "shape", "RuntimeError in test_check.py, line "),
        (Unused, "gradients", "forgotten gets no gradient"),
        (OwnPast, "cache", "a logit changed by"),
        (Loud, "start", "far from log V = 2.833"),
        (Noisy, "repeatable", "a second call with the same text differs"),
        (Deaf, "learns", "the loss is still 2.83"),
    ],
)
def test_an_attention_that_breaks_a_law_is_told_which(kind: Any, law: str, words: str) -> None:
    assert words in broken(kind)[law]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Wider, "forward of Wider returns (2, 12, 33), it must return (2, 12, 32)"),
        (Pair, "forward of Pair returns a tuple, it must return a tensor (2, 12, 32)"),
        (NotANumber, "forward of NotANumber returns numbers that are not finite (NaN or infinite)"),
        (NoLogits, "forward of NoLogits returns (2, 12, 3), it must return (2, 12, 17)"),
    ],
)
def test_a_wrong_output_is_the_only_law_that_is_reported(kind: Any, words: str) -> None:
    assert check(build(kind, [])[0]) == {"forward": words}


def test_every_law_has_an_attention_that_breaks_it() -> None:
    assert len(LAWS) == 9, "add a broken attention to the tests above"


def test_differential_attention_obeys_all_laws_that_it_declares() -> None:
    assert broken(Differential) == {}


PLUGIN = '''
from lit_gpt_scratch.models import MultiHeadAttention

class Mine(MultiHeadAttention):
    """Equal to its parent."""

class Bent(MultiHeadAttention):
    def forward(self, x, cache=None):
        return super().forward(x)

def function(width):
    return Mine(width)
'''


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "plugin_to_check.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "plugin_in_folder.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("plugin_to_check", "plugin_in_folder"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugin_to_check.Mine"],
        ["plugin_to_check:Mine"],
        ["./folder/plugin_in_folder.py:Mine"],
        ["Mine", "--plugin", "plugin_to_check", "--heads", "2"],
        ["Mine", "--plugin", "plugin_to_check.py"],
        ["RotaryAttention", "--heads=4"],
    ],
)
def test_a_class_is_found_and_all_laws_hold(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert "as the attention of a GPT of one block" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["holds", name] for name in LAWS]


def test_a_broken_law_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check", "plugin_to_check.Bent"])
    assert stop.value.code == 1
    assert "FAILS        cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a class"),
        (
            ["plugin_to_check.Mien"],
            "no class plugin_to_check.Mien: did you mean plugin_to_check.Mine? "
            "There are plugin_to_check.Mine, plugin_to_check.Bent.",
        ),
        (["plugin_to_check.py:Bend"], "did you mean plugin_to_check.py:Bent?"),
        (["MultiHedAttention"], "did you mean MultiHeadAttention? There are FusedAttention"),
        (["plugin_to_check"], "has Mine, Bent: give one, as in check plugin_to_check.Mine."),
        (
            ["folder/plugin_in_folder.py"],
            "has Mine, Bent: give one, as in check folder/plugin_in_folder.py:Mine.",
        ),
        (["plugin_to_check.function"], "plugin_to_check.function is a function: give a class"),
        (["json"], "json has no attention and no network"),
        (["transformer"], "transformer is a config: give a class"),
        (["no_such_module.Mine"], "there is no module no_such_module"),
        (["no_such_file.py:Mine"], "no_such_file.py: there is no such file"),
        (["MultiHeadAttention", "--heads", "5"], "heads must divide the width"),
        (["MultiHeadAttention", "--heads", "abc"], "--heads is 'abc': it must be a whole number."),
        (["MultiHeadAttention", "--hed", "5"], "--hed 5. It takes --width, --heads, --dropout."),
        (["MultiHeadAttention", "--hed", "["], "unrecognized arguments: --hed ["),
        (["MultiHeadAttention", "--heads"], "argument --heads: expected one argument."),
        ([f"{__file__}:Plain"], "the following arguments are required: scale"),
        ([f"{__file__}:Plain", "--scale=1", "--rate=x"], "--rate is 'x': it must be a number."),
        (["Block"], "Block: the following arguments are required: attention"),
        (["GPT", "--context", "64"], "unrecognized arguments: --context 64"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check", *arguments])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert words in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


def test_a_law_that_does_not_apply_says_what_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", f"{__file__}:Plain", "--scale", "1e0"])
    said = capsys.readouterr().out
    assert "not offered  weights     no pictures: add a method weights(x)" in said
    assert "again: add the argument, forward(x, cache=None)" in said


def test_an_argument_that_is_a_class_is_built() -> None:
    net, _ = build(GPT, ["--attention", "MultiHeadAttention", "--attention.heads=2", "--layers=1"])
    assert [m.heads for m in net.modules() if type(m) is MultiHeadAttention] == [2]
