"""Values of each layer: equal to those of a plain computation, and training stays the same."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import train_small
from lightning.pytorch.callbacks import Callback

from lit_gpt_scratch.inspection import attention
from lit_gpt_scratch.models import MultiHeadAttention
from lit_gpt_scratch.runs import layers
from lit_gpt_scratch.runs.layers import LayerStatistics

OFTEN = ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2"]


class Reference(Callback):
    """Keeps the gradients and the weights of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.net.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named} | weights(pl_module))


def weights(pl_module: Any) -> dict[str, torch.Tensor]:
    return {f"w {n}": p.detach().clone() for n, p in pl_module.net.named_parameters()}


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["val/loss"]]


def test_values_are_those_of_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference()
    from lit_gpt_scratch.runs import callbacks

    make = callbacks.make_callbacks
    monkeypatch.setattr(callbacks, "make_callbacks", lambda *a: [reference, *make(*a)])
    run = train_small(tmp_path, *OFTEN)
    last, after, row = reference.steps[-1], weights(run.model), rows(run.folder)[-1]
    for layer in ("embed", "blocks.0", "unembed"):
        names = [n for n, _ in run.model.net.named_parameters() if n.startswith(layer)]
        gradients = [last[name] for name in names]
        assert float(row[f"layer_grad_norm/{layer}"]) == pytest.approx(norm(gradients), rel=1e-4)
        old = [last[f"w {name}"] for name in names]
        change = [after[f"w {n}"] - before for n, before in zip(names, old, strict=True)]
        ratio = norm(change) / norm(old)
        assert float(row[f"update_ratio/{layer}"]) == pytest.approx(ratio, rel=1e-3)
    text = run.datamodule.tokenizer.decode(
        run.datamodule.tokens[run.datamodule.splits.val.start :][: run.datamodule.context]
    )
    ((_, found),) = attention(run.model, text)
    entropy = -(found * found.clamp(min=1e-30).log()).sum(-1).mean()
    logged = float(row["attention_entropy/blocks.0"])
    assert logged == pytest.approx(float(entropy), rel=1e-4)
    assert 0 < logged < math.log(run.datamodule.context)


class Halved(MultiHeadAttention):
    weights_sum_to_1 = False

    def attend(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return super().attend(q, k) / 2


def test_weights_that_are_no_probabilities_have_no_entropy(tmp_path: Path) -> None:
    flags = ["--model.net=GPT", "--model.net.layers=1", "--model.net.width=16", *OFTEN]
    run = train_small(tmp_path, *flags, f"--model.net.attention={__name__}.Halved")
    names = {name.partition("/")[0] for name in rows(run.folder)[-1]}
    assert "layer_grad_norm" in names
    assert "attention_entropy" not in names


def test_training_is_the_same_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = train_small(tmp_path, *OFTEN).model.state_dict()
    for hook in ("on_before_optimizer_step", "on_train_batch_end", "on_validation_epoch_end"):
        monkeypatch.setattr(LayerStatistics, hook, lambda *_: None)
    without = train_small(tmp_path, *OFTEN).model.state_dict()
    assert all(torch.equal(without[name], value) for name, value in with_it.items())


def test_a_resumed_run_logs_the_same_values(tmp_path: Path) -> None:
    """The values of a logged step are kept in the checkpoint until the next validation."""
    flags = ["--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2"]
    whole = train_small(tmp_path, *flags)
    stop = ["--trainer.callbacks+=extra_callbacks.SendSignal", "--trainer.callbacks.step=2"]
    with pytest.raises(SystemExit):
        train_small(tmp_path, *flags, *stop, "--name=stopped")
    folder = tmp_path / "runs" / "stopped" / "version_0"
    train_small(tmp_path, *flags, f"--ckpt_path={folder}", "--name=stopped")
    names = [name for name in rows(whole.folder)[-1] if "/" in name]
    assert any(name.startswith("update_ratio/") for name in names)
    for name in names:
        assert rows(folder)[-1][name] == rows(whole.folder)[-1][name]


def test_an_error_is_one_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("weights are split")

    monkeypatch.setattr(layers, "total_norm", fail)
    run = train_small(tmp_path, *OFTEN)
    said = capsys.readouterr().err
    assert said.count("Notice: statistics of layers are not logged (RuntimeError in") == 1
    assert [row["step"] for row in rows(run.folder)] == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.10.attention.qkv.weight", "blocks.10"),
        ("members.3.blocks.1.norm.gain", "members.3"),
        ("unembed.weight", "unembed"),
        ("table.weight", "table"),
        ("alone", "alone"),
    ],
)
def test_the_layer_of_a_parameter(name: str, layer: str) -> None:
    net = torch.nn.Module()
    part = net
    *path, last = name.split(".")
    for piece in path:
        part.add_module(piece, torch.nn.Module())
        part = part.get_submodule(piece)
    part.register_parameter(last, torch.nn.Parameter(torch.zeros(1)))
    assert [*layers.layers(net)] == [layer]
