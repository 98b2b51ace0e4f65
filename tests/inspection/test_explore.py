"""Looking inside a model: what is seen is what is there, and looking changes nothing.

Shapes: T time, C channels, H heads, V alphabet size.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from laws import ALPHABET, CONFIGS, random_ids, reference_weights, small, with_random_weights
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch import inspection
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models.attention import MeanAttention, MultiHeadAttention, SingleHeadAttention
from lit_gpt_scratch.models.ensemble import Ensemble
from lit_gpt_scratch.models.gpt import GPT, AttentionLM, Bigram
from lit_gpt_scratch.training.module import LitCharLM

TEXT = "GoodLuck"  # as long as the context
LONG = "ThreeWindowsAndAPieceOfOne"


def far_from_start(config: Path) -> LitCharLM:
    model = small(config).eval()
    model.net = with_random_weights(model.net)
    return model


def lone(config: Path) -> LitCharLM:
    """A config's model, or a member of it: a network that may have a stream."""
    model = far_from_start(config)
    return inspection.member(model, 1) if hasattr(model.net, "members") else model


STREAMS = [config for config in CONFIGS if hasattr(lone(config).net, "unembed")]
ENSEMBLES = [config for config in CONFIGS if hasattr(small(config).net, "members")]


def of(configs: list[Path]) -> Any:
    return pytest.mark.parametrize("config", configs, ids=lambda path: path.stem)


every_config = of(CONFIGS)
every_stream = of(STREAMS)
every_ensemble = of(ENSEMBLES)


def named(stem: str) -> LitCharLM:
    return far_from_start(next(config for config in CONFIGS if config.stem == stem))


# Networks by hand, a part after the other


def layers_of(net: Any) -> list[Any]:
    return [net.attention] if isinstance(net, AttentionLM) else list(net.blocks)


def attention_of(layer: Any) -> Any:
    return getattr(layer, "attention", layer)


def stream(net: Any, ids: Tensor, lost: int | None = None) -> list[Tensor]:
    """(T, C) after each stage; of the character at `lost`, nothing enters."""
    x = net.embed(ids[None])
    if lost is not None:
        x = torch.stack([0 * x[:, t] if t == lost else x[:, t] for t in range(len(ids))], dim=1)
    stages = [x]
    for layer in layers_of(net):
        stages.append(layer(stages[-1]))
    return [stage[0] for stage in stages]


def unembed(net: Any, x: Tensor) -> Tensor:
    """Logits (T, V) of the stream (T, C)."""
    if isinstance(net, AttentionLM):
        return x @ net.unembed.weight.T + net.unembed.bias
    if isinstance(net, GPT):
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * net.unembed[0].weight @ net.unembed[1].weight.T
    return net.unembed(x)


def logits(net: Any, ids: Tensor, lost: int | None = None) -> Tensor:
    """(T, V)."""
    if isinstance(net, Ensemble):
        return torch.stack([logits(m, ids).softmax(-1) for m in net.members]).mean(0).log()
    if isinstance(net, Bigram):
        rows = [0 * net.table.weight[i] if t == lost else net.table.weight[i]
                for t, i in enumerate(ids)]  # fmt: skip
        return torch.stack(rows)
    return unembed(net, stream(net, ids, lost)[-1])


def losses(model: LitCharLM, text: str, net: nn.Module | None = None) -> Tensor:
    """Nats (T - 1,), each from all that its window holds before it."""
    ids = model.tokenizer.encode(text)
    found = []
    for t in range(1, len(ids)):
        start = (t - 1) // model.context * model.context
        scores = logits(net or model.net, ids[start:t])[-1].double()
        found.append(scores.exp().sum().log() - scores[ids[t]])
    return torch.stack(found)


def direct(attention: Any, x: Tensor) -> Tensor:
    """Weights (H, T, T) of x (T, C), from the parameters, head by head and reader by reader."""
    if getattr(type(attention), "split", None) is MultiHeadAttention.split:
        query, key, _ = (x @ matrix.T for matrix in attention.qkv.weight.chunk(3))
        size = query.size(-1) // attention.heads
        pairs = zip(query.split(size, dim=-1), key.split(size, dim=-1), strict=True)
        return torch.stack([reference_weights(q, k) for q, k in pairs])
    if isinstance(attention, SingleHeadAttention):
        return reference_weights(x @ attention.query.weight.T, x @ attention.key.weight.T)[None]
    if isinstance(attention, MeanAttention):
        return reference_weights(0 * x, 0 * x)[None]
    return attention.weights(x[None])[0]  # of other classes, their own word; tested elsewhere


# What is seen is what is there


@every_stream
@torch.no_grad()
def test_attention_is_what_each_head_reads(config: Path) -> None:
    """Of every layer in turn, under its name: each gathers by it what it then hands on."""
    model = lone(config)
    found = inspection.attention(model, TEXT)
    parts = dict(model.net.named_modules())
    assert [id(parts[name]) for name, _ in found] == [
        id(attention_of(layer)) for layer in layers_of(model.net)
    ]
    inputs: dict[nn.Module, Tensor] = {}
    for name, _ in found:
        parts[name].register_forward_pre_hook(lambda m, x: inputs.update({m: x[0][0]}))
    stream(model.net, model.tokenizer.encode(TEXT))
    for name, weights in found:
        expected = direct(parts[name], inputs[parts[name]])
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)


@every_ensemble
def test_an_ensembles_attention_is_that_of_its_members(config: Path) -> None:
    model = far_from_start(config)
    found = inspection.attention(model, TEXT)
    for i in range(len(model.net.members)):
        for name, weights in inspection.attention(inspection.member(model, i), TEXT):
            layer, ours = found.pop(0)
            assert layer == f"members.{i}.{name}"
            assert torch.equal(ours, weights)
    assert not found


@every_config
@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 8])
def test_next_characters_are_those_of_each_beginning_of_the_text(config: Path, length: int) -> None:
    model = far_from_start(config)
    ids = model.tokenizer.encode(TEXT[:length])
    found = inspection.next_characters(model, TEXT[:length])
    assert found.shape == (length, len(ALPHABET))
    for t in range(length):
        chances = logits(model.net, ids[: t + 1])[-1].exp()
        torch.testing.assert_close(found[t], chances / chances.sum(), atol=1e-6, rtol=1e-4)


@every_config
@torch.no_grad()
@pytest.mark.parametrize("text", [TEXT[:2], TEXT, TEXT + "y", LONG])
def test_surprise_is_the_loss_of_each_character_but_the_first(config: Path, text: str) -> None:
    model = far_from_start(config)
    found = inspection.surprise(model, text)
    torch.testing.assert_close(found.double(), losses(model, text), atol=1e-5, rtol=1e-4)


def test_a_long_texts_mean_surprise_is_its_validation_loss(tmp_path: Path) -> None:
    model = named("transformer")
    (tmp_path / "text.txt").write_text(ALPHABET + LONG)
    share = len(LONG) / len(ALPHABET + LONG)
    data = CharDataModule(str(tmp_path / "text.txt"), model.context, 4, share, alphabet=ALPHABET)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (metrics,) = trainer.validate(model, data, verbose=False)
    mean = inspection.surprise(model, LONG).mean().item()
    assert mean == pytest.approx(metrics["val/loss"], abs=1e-5)


@every_stream
@torch.no_grad()
def test_the_logit_lens_unembeds_each_stage_of_the_stream(config: Path) -> None:
    """And the last of them says what the network says."""
    model = lone(config)
    stages, found = inspection.logit_lens(model, TEXT)
    parts = dict(model.net.named_modules())
    assert [parts[name] for name in stages] == [model.net.embed, *layers_of(model.net)]
    for x, probabilities in zip(
        stream(model.net, model.tokenizer.encode(TEXT)), found, strict=True
    ):
        expected = unembed(model.net, x).softmax(-1)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[-1], inspection.next_characters(model, TEXT))


@every_config
@torch.no_grad()
@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_trace_is_what_a_change_does_to_the_stream_and_to_the_prediction(
    config: Path, position: int
) -> None:
    """What comes before it is untouched, to the last bit; it itself is not."""
    model = far_from_start(config)
    found = inspection.trace(model, TEXT, position, "Z")
    texts = (TEXT, TEXT[:position] + "Z" + TEXT[position + 1 :])
    before, after = (model.tokenizer.encode(text) for text in texts)
    p, q = (logits(model.net, ids).double().softmax(-1) for ids in (before, after))
    for t, divergence in enumerate(found.prediction):
        expected = sum(a * (a.log() - b.log()) for a, b in zip(p[t], q[t], strict=True))
        torch.testing.assert_close(divergence.double(), expected, atol=1e-5, rtol=1e-4)
    assert not found.prediction[:position].any()
    assert found.prediction[position] > 1e-3
    assert found.stream.shape == (len(found.stages), len(TEXT))
    if not hasattr(model.net, "unembed"):
        assert not found.stages
        return
    assert found.stages == inspection.logit_lens(model, TEXT).stages
    pairs = zip(stream(model.net, before), stream(model.net, after), strict=True)
    for row, (x, y) in zip(found.stream, pairs, strict=True):
        shares = [(y[t] - x[t]).norm() / x[t].norm() for t in range(len(TEXT))]
        torch.testing.assert_close(row, torch.stack(shares), atol=1e-5, rtol=1e-4)
    assert not found.stream[:, :position].any()


@of([c for c in CONFIGS if c not in ENSEMBLES])
@torch.no_grad()
def test_embeddings_are_looked_up_and_compared_by_their_angles(config: Path) -> None:
    model = lone(config)
    net: Any = model.net
    rows, cosines = inspection.embeddings(model), inspection.similarity(model)
    table = net.table if isinstance(net, Bigram) else net.embed.character
    assert torch.equal(rows, table(torch.arange(len(ALPHABET))))
    for row, line in zip(rows, cosines, strict=True):
        torch.testing.assert_close(line, F.cosine_similarity(row[None], rows), atol=1e-5, rtol=0)
    rows.zero_()
    assert table.weight.any(), "a copy"


@every_ensemble
@torch.no_grad()
def test_a_member_is_a_model_of_its_own(config: Path) -> None:
    """The members' mean is the ensemble; and none is changed through its copy."""
    model = far_from_start(config)
    members = [inspection.member(model, i) for i in range(len(model.net.members))]
    mean = sum(inspection.next_characters(one, TEXT) for one in members) / len(members)
    torch.testing.assert_close(mean, inspection.next_characters(model, TEXT))
    before = inspection.surprise(model, LONG)
    for one in members:
        assert not one.training
        for parameter in one.parameters():
            parameter.zero_()
    assert torch.equal(inspection.surprise(model, LONG), before)


# Ablation, against a copy from which the part is taken away


def cost(model: LitCharLM, net: nn.Module) -> Tensor:
    return losses(model, LONG, net).mean() - losses(model, LONG).mean()


def mute(net: nn.Module, layer: int, head: int | None = None) -> nn.Module:
    """A copy in which a head's channels, or all, count for nothing where attention hands on."""
    net = copy.deepcopy(net)
    attention = attention_of(layers_of(net)[layer])
    if isinstance(attention, MultiHeadAttention):
        columns = attention.output.weight
        by_head = columns.view(len(columns), attention.heads, -1)  # (C, H, C / H)
        by_head[:, slice(None) if head is None else head] = 0
    else:
        attention.value.weight.zero_()
    return net


@every_stream
@torch.no_grad()
def test_a_heads_cost_is_that_of_its_columns_in_the_projection(config: Path) -> None:
    model = lone(config)
    found = inspection.head_costs(model, LONG)
    layers = layers_of(model.net)
    assert found.shape == (len(layers), getattr(attention_of(layers[0]), "heads", 1))
    for layer, row in enumerate(found):
        for head, ours in enumerate(row):
            expected = cost(model, mute(model.net, layer, head))
            torch.testing.assert_close(ours.double(), expected, atol=3e-6, rtol=1e-3)
    assert found.abs().max() > 1e-4


@every_stream
@torch.no_grad()
def test_a_layers_cost_is_that_of_leaving_it_out(config: Path) -> None:
    model = lone(config)
    found = inspection.layer_costs(model, LONG)
    assert len(found) == len(layers_of(model.net))
    for layer, ours in enumerate(found):
        if isinstance(model.net, AttentionLM):
            net = mute(model.net, layer)
        else:
            net = copy.deepcopy(model.net)
            del net.blocks[layer]
        torch.testing.assert_close(ours.double(), cost(model, net), atol=3e-6, rtol=1e-3)
    assert found.abs().max() > 1e-4


@of([c for c in CONFIGS if c not in ENSEMBLES])
@torch.no_grad()
def test_a_positions_cost_is_that_of_an_input_of_zeros(config: Path) -> None:
    """For each character but the last, of which nothing is expected."""
    model = lone(config)
    found = inspection.position_costs(model, TEXT)
    ids = model.tokenizer.encode(TEXT)
    assert len(found) == len(TEXT) - 1
    for position, ours in enumerate(found):
        loss = F.cross_entropy(logits(model.net, ids[:-1], lost=position).double(), ids[1:])
        expected = loss - losses(model, TEXT).mean()
        torch.testing.assert_close(ours.double(), expected, atol=3e-6, rtol=1e-3)


@every_stream
@torch.no_grad()
def test_ablations_add_up_and_end(config: Path) -> None:
    """Without all layers the embedding alone speaks; afterwards all is as it was."""
    model = lone(config)
    net, ids = model.net, model.tokenizer.encode(TEXT)
    whole, empty = net(ids[None]), stream(net, ids)[0] * (not isinstance(net, AttentionLM))
    with ExitStack() as ablations:
        for layer in range(len(layers_of(net))):
            ablations.enter_context(inspection.without_layer(model, layer))
        torch.testing.assert_close(net(ids[None])[0], unembed(net, empty), atol=1e-4, rtol=1e-4)
    assert torch.equal(net(ids[None]), whole)


# Looking changes nothing


def tensors(found: Any) -> list[Tensor]:
    if isinstance(found, list | tuple):
        return [tensor for item in found for tensor in tensors(item)]
    return [found] if isinstance(found, Tensor) else []


def within(ablation: Callable[..., AbstractContextManager[None]], *part: int) -> Any:
    def look(model: LitCharLM) -> Tensor:
        with ablation(model, *part):
            return inspection.surprise(model, LONG)

    return look


LOOKS: dict[str, Callable[[LitCharLM], Any]] = {
    "attention": lambda model: inspection.attention(model, TEXT),
    "next_characters": lambda model: inspection.next_characters(model, TEXT),
    "surprise": lambda model: inspection.surprise(model, LONG),
    "logit_lens": lambda model: inspection.logit_lens(model, TEXT),
    "trace": lambda model: inspection.trace(model, TEXT, 3, "Z"),
    "head_costs": lambda model: inspection.head_costs(model, LONG),
    "layer_costs": lambda model: inspection.layer_costs(model, LONG),
    "position_costs": lambda model: inspection.position_costs(model, TEXT),
    "without_head": within(inspection.without_head, 0, 0),
    "without_layer": within(inspection.without_layer, 0),
    "without_position": within(inspection.without_position, 3),
    "embeddings": inspection.embeddings,
    "similarity": inspection.similarity,
}
LAYERS = ("logit_lens", "head_costs", "layer_costs", "without_head", "without_layer")
EMBEDDING = ("position_costs", "without_position", "embeddings", "similarity")
LACKING = {  # all else works
    **{("Bigram", look): "^Bigram has no layers.$" for look in LAYERS},
    ("Bigram", "attention"): "^Bigram has no attention with weights to look at.$",
    **{("Ensemble", look): "^Ensemble has no layers of its own: ask" for look in LAYERS},
    **{("Ensemble", look): "^Ensemble has no embedding of its own: ask" for look in EMBEDDING},
}


def hooks(net: nn.Module) -> int:
    return sum(
        len(vars(module)[kind]) for module in net.modules() for kind in vars(module)
        if kind.endswith("_hooks")
    )  # fmt: skip


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@every_config
@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_nothing(config: Path, look: str) -> None:
    """Outputs, parameters, modes and hooks are as before; and the mode changes nothing seen.

    What comes out are plain tensors; what a rung has not is one clear error.
    """
    model = far_from_start(config)
    net, ids = model.net, random_ids(len(ALPHABET), 2, model.context)
    before, weights = net(ids), copy.deepcopy(net.state_dict())
    lacking = LACKING.get((type(net).__name__, look))
    found = []
    for training in (False, True):
        net.train(training)
        next(net.children()).eval()  # as somebody may who trains the rest
        was = modes(net)
        with pytest.raises(InputError, match=lacking) if lacking else ExitStack():
            found.append(tensors(LOOKS[look](model)))
        assert hooks(net) == 0
        assert modes(net) == was
    assert lacking or found[0]
    for first, second in zip(*found, strict=True) if found else ():
        assert torch.equal(first, second)
        assert first.isfinite().all()
        assert not first.requires_grad
        assert not first.is_inference(), "a notebook may not change it"
    assert torch.equal(net.eval()(ids), before)
    assert all(torch.equal(w, weights[name]) for name, w in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@every_config
def test_when_the_network_fails_hooks_are_taken_off_and_the_mode_is_restored(config: Path) -> None:
    """And hooks that somebody else put on stay."""

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    model = far_from_start(config)
    model.net.train().register_forward_hook(fail)
    for name, look in LOOKS.items():
        with suppress(RuntimeError, InputError):
            look(model)
            assert name in EMBEDDING, "it has not failed"
        assert hooks(model.net) == 1, name
        assert all(modes(model.net)), name


def test_nothing_is_compiled_for_a_look() -> None:
    """With hooks in it, a compiled block would be compiled anew, at every text's length."""

    def refuse(*_: object) -> Any:
        raise AssertionError("compiled")

    model = named("gpt")
    plain = {look: tensors(LOOKS[look](model)) for look in LOOKS}
    for block in layers_of(model.net):
        block.compile(backend=refuse)
    for look, expected in plain.items():
        for ours, theirs in zip(tensors(LOOKS[look](model)), expected, strict=True):
            assert torch.equal(ours, theirs)


# Mistakes


@pytest.mark.parametrize(
    "look", [inspection.attention, inspection.next_characters, inspection.logit_lens]
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text has 0 characters: give at least 1 and at most 8, the model's context."),
        (TEXT + "y", "the text has 9 characters: give at least 1 and at most 8"),
        ("no way", "' ' at position 2"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(look: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        look(named("gpt_cpu"), text)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda m: inspection.surprise(m, "G"), "has 1 characters: give at least 2.$"),
        (lambda m: inspection.position_costs(m, "G"), "has 1 characters: give at least 2 and at"),
        (lambda m: inspection.position_costs(m, TEXT + "y"), "has 9 characters: .* at most 8"),
        (lambda m: inspection.trace(m, "", 0, "Z"), "has 0 characters"),
        (lambda m: inspection.trace(m, TEXT, 8, "Z"), "position is 8: it must be from 0 to 7"),
        (lambda m: inspection.trace(m, TEXT, -1, "Z"), "position is -1"),
        (lambda m: inspection.trace(m, TEXT, 2, "Zz"), "character is .Zz.: give a single one"),
        (lambda m: inspection.trace(m, TEXT, 2, "o"), "other than .o."),
        (lambda m: inspection.trace(m, TEXT, 2, ""), "character is ''"),
        (lambda m: inspection.trace(m, TEXT, 2, "!"), "'!' at position 2"),
        (within(inspection.without_head, 2, 0), "layer is 2: it must be from 0 to 1"),
        (within(inspection.without_head, 0, 2), "head is 2: it must be from 0 to 1"),
        (within(inspection.without_layer, -1), "layer is -1"),
        (within(inspection.without_position, 8), "position is 8: it must be from 0 to 7"),
        (lambda m: inspection.member(m, 0), "ModernGPT has no members: it is one network already"),
        (lambda _: inspection.member(named("gpt_cpu_long"), 3), "member is 3: .* from 0 to 2"),
    ],
)
def test_what_is_not_there_is_refused_by_name(mistake: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mistake(named("gpt_cpu"))


def test_attention_that_does_not_say_what_it_reads_has_no_heads_to_look_at() -> None:
    """It may leave `weights` out; the rest can still be looked at."""
    model = named("gpt_cpu")
    for block in layers_of(model.net):
        block.attention = nn.Linear(32, 32)
    for look in ("attention", "head_costs"):
        with pytest.raises(InputError, match="ModernGPT has no attention with weights"):
            LOOKS[look](model)
    assert inspection.layer_costs(model, LONG).shape == (2,)
