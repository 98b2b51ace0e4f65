"""`check` says which law a new attention breaks; for each law there is one that breaks it."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lit_gpt_scratch.cli import main
from lit_gpt_scratch.cli.check import ALPHABET_SIZE, CONTEXT, LAWS, build, check
from lit_gpt_scratch.models import MultiHeadAttention, causal_softmax
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


class FixedMask(MultiHeadAttention):
    """Its mask has the size of the context; shorter texts raise an error."""

    def head_outputs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = torch.ones(CONTEXT, CONTEXT).tril() == 1
        weights = (q @ k.mT).masked_fill(~past, -math.inf).softmax(-1)
        return weights @ v  # PyTorch raises the error here


class ByName(nn.Module):
    """A network and its arguments in an order of its own."""

    def __init__(self, context: int, *, alphabet_size: int) -> None:
        super().__init__()
        assert (alphabet_size, context) == (ALPHABET_SIZE, CONTEXT)
        self.table = nn.Embedding(alphabet_size, alphabet_size)


class KeywordOnly(MultiHeadAttention):
    def __init__(self, *, width: int, power: int) -> None:
        super().__init__(width)


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


class Signed(MultiHeadAttention):
    """Its rows sum to 1, but have negative weights: it subtracts the character before."""

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        now = torch.eye(k.size(-2))[-q.size(-2) :]
        before = now.roll(-1, -1).tril(k.size(-2) - q.size(-2) - 1)
        start = torch.eye(k.size(-2))[-q.size(-2) :] * (torch.arange(k.size(-2)) == 0)
        return (2 * now - start - before).expand(*q.shape[:2], -1, -1)


class Deaf(nn.Module):
    """A network that cannot learn: it gives all characters the same logit."""

    def __init__(self, alphabet_size: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet_size, alphabet_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * 1e-9


def broken(kind: Any) -> dict[str, str]:
    net, _ = build(kind, {})
    return {name: said for name, said in check(net).items() if said}


@pytest.mark.parametrize(
    ("kind", "law", "words"),
    [
        (OneLength, "shape", "has other logits than the same beginning of 12"),
        (FixedMask, "shape", "RuntimeError in test_check.py, line "),
        (FixedMask, "cache", "RuntimeError in test_check.py, line "),
        (WrongAxis, "causal", "changed the logits at"),
        (Undeclared, "weights", "set weights_sum_to_1 = False in the class"),
        (Signed, "weights", "(the smallest is -1.000, a sum is off by 0.000)"),
        (Unused, "gradients", "forgotten gets no gradient"),
        (OwnPast, "cache", "a logit changed by"),
        (Loud, "start", "far from log V = 2.833"),
        (Noisy, "repeatable", "a second call with the same text differs"),
        (Deaf, "learns", "the loss is still 2.83"),
    ],
)
def test_an_attention_that_breaks_a_law_is_told_which(kind: Any, law: str, words: str) -> None:
    assert words in broken(kind)[law]


def test_an_exception_is_told_with_the_line_of_the_users_own_file() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    said = broken(FixedMask)["shape"].partition(":")[0]
    assert "raises the error here" in lines[int(said.rpartition(" ")[2]) - 1]


def test_sizes_are_passed_by_name_as_in_fit() -> None:
    assert build(ByName, {})[1] == "as a network"
    given = {"width": 16, "power": 2}
    build(KeywordOnly, given)
    assert given == {"width": 16, "power": 2}, "the caller's arguments stay as they are"


def test_every_law_has_an_attention_that_breaks_it() -> None:
    assert len(LAWS) == 8, "add a broken attention to the test above"


def test_differential_attention_obeys_all_laws_that_it_declares() -> None:
    assert broken(Differential) == {}


PLUGIN = '''
from lit_gpt_scratch.models import MultiHeadAttention

class Mine(MultiHeadAttention):
    """Equal to its parent."""

class KeywordOnly(MultiHeadAttention):
    def __init__(self, width, *, power):
        super().__init__(width)

class Bent(MultiHeadAttention):
    def forward(self, x, cache=None):
        return super().forward(x)
'''


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "plugin_to_check.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("plugin_to_check", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugin_to_check.Mine"],
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
        (["plugin_to_check.Mien"], "there is no class plugin_to_check.Mien"),
        (["no_such_module.Mine"], "there is no module no_such_module"),
        (["MultiHeadAttention", "--heads", "5"], "heads must divide the width"),
        (["MultiHeadAttention", "--hed", "5"], "has no argument hed: it takes width, heads"),
        (["MultiHeadAttention", "--heads"], "give arguments of the class, as in --heads 8"),
        (["Block"], "Block needs --attention"),
        (["./plugin_to_check.py"], "give the class, and its file with --plugin"),
        (["plugin_to_check.py"], "give the class, and its file with --plugin"),
        (["MultiHeadAttention", "--heads", "["], "--heads is '[': give a number"),
        (["plugin_to_check.KeywordOnly"], "KeywordOnly needs --power"),
        (["GPT", "--context", "64"], "GPT has no argument context"),
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
