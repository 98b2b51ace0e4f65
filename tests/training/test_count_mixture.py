"""The callback that mixes a count model into evaluation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_runs import last, same, state
from laws import train_small
from torch.nn import functional as F

from lit_gpt_scratch import cli
from lit_gpt_scratch.data.kneser_ney import KneserNey
from lit_gpt_scratch.runs.folder import validations

MIX = "--trainer.callbacks+=CountMixture"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_small(tmp_path_factory.mktemp("run"), "--data.test_fraction=0.1", MIX)


def evaluate(run: Any, *flags: str, command: str = "validate") -> dict[str, float]:
    arguments = [command, f"--ckpt_path={last(run.folder)}", MIX, *flags]
    metrics = cli.main(arguments).trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def expected_loss(run: Any, split: str, order: int, weight: float) -> float:
    """Compute the loss window by window, from logits."""
    data, net = run.datamodule, run.model.net.eval()
    part = getattr(data.splits, split)
    train, ids = (data.tokens[s.start : s.stop].long() for s in (data.splits.train, part))
    counts = KneserNey(train.numpy(), len(data.alphabet), order)
    losses = []
    for start in range(0, len(ids) - 1, data.context):
        window = ids[start : start + data.context + 1]
        with torch.inference_mode():
            log_probs = F.log_softmax(net(window[None, :-1])[0].double(), -1)
        own = log_probs.gather(-1, window[1:, None])[:, 0].exp()
        counted = torch.from_numpy(counts.probabilities(window[None].numpy())[0])
        losses.append(-((1 - weight) * own + weight * counted).log())
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize(("order", "weight"), [(3, 0.4), (1, 1.0), (2, 0.0)])
def test_the_loss_is_that_of_the_mixture(run: Any, order: int, weight: float) -> None:
    values = [f"--trainer.callbacks.order={order}", f"--trainer.callbacks.weight={weight}"]
    found = evaluate(run, *values)
    expected = expected_loss(run, "val", order, weight)
    assert found["val/loss_with_counts"] == pytest.approx(expected, rel=1e-5)
    if weight == 0:
        assert found["val/loss_with_counts"] == pytest.approx(found["val/loss"], rel=1e-5)


def test_the_test_split_is_evaluated_too(run: Any) -> None:
    found = evaluate(run, command="test")
    assert found["test/loss_with_counts"] == pytest.approx(
        expected_loss(run, "test", 8, 0.3), rel=1e-5
    )


def test_overlapping_windows_do_not_count(run: Any) -> None:
    plain, strided = evaluate(run), evaluate(run, "--data.stride=4")
    assert "val_strided/loss" in strided
    assert strided["val/loss_with_counts"] == plain["val/loss_with_counts"]


def test_training_does_not_change(run: Any, tmp_path: Path) -> None:
    alone = train_small(tmp_path, "--data.test_fraction=0.1").folder
    assert same(state(alone), state(run.folder))
    logged = [row["val/loss_with_counts"] for row in validations(run.folder)]
    assert logged
    assert all(math.isfinite(float(loss)) for loss in logged)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("weight=1.5", "weight is 1.5: it must be from 0 to 1"),
        ("order=0", "order is 0: it must be at least 1"),
        ("order=40", "order is 40: with"),
    ],
)
def test_a_wrong_value_gets_one_line(
    run: Any, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        evaluate(run, f"--trainer.callbacks.{flag}")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
