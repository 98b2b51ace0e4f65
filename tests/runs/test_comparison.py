"""Statistics and verdicts of `compare`, against simulations and numerical integration."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.runs import comparison, reading
from lit_gpt_scratch.runs.comparison import (
    MAX_SEEDS,
    T_QUANTILES,
    Comparison,
    Outcome,
    differing_settings,
    explain,
    half_width,
    paired_difference,
    unequal_settings,
)

LOSSES = st.lists(st.floats(1, 4), min_size=2, max_size=8)


def area_of_t(quantile: float, freedom: int, parts: int = 4000) -> float:
    """Integrate the density of Student's t from -quantile to quantile (Simpson's rule)."""
    norm = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi * freedom)
    step = quantile / parts
    heights = [(1 + (i * step) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(parts + 1)]
    inner = 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return 2 * norm * (heights[0] + inner + heights[-1]) * step / 3


@pytest.mark.parametrize("freedom", range(1, 100, 3))
def test_quantiles_enclose_95_percent_of_students_t(freedom: int) -> None:
    quantile = half_width(1.0, freedom + 1) * math.sqrt(freedom + 1)
    assert area_of_t(quantile, freedom) == pytest.approx(0.95, abs=0.0005)


def test_quantiles_fall() -> None:
    assert all(a > b for a, b in pairwise(T_QUANTILES))


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_95_percent_of_the_intervals_contain_the_true_difference(pairs: int) -> None:
    """The seeds' own spread is ten times that of the differences: pairing removes it."""
    rng, inside = random.Random(pairs), 0
    for _ in range(2000):
        base = [rng.gauss(2, 0.1) for _ in range(pairs)]
        found = paired_difference(base, [loss + rng.gauss(0.02, 0.01) for loss in base])
        inside += found.low <= 0.02 <= found.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


@given(LOSSES, st.data())
def test_exchanged_sides_have_the_opposite_verdict(base: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.floats(1, 4), min_size=len(base), max_size=len(base)))
    there, back = paired_difference(base, other), paired_difference(other, base)
    opposite = {"better": "worse", "worse": "better"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)
    assert there.low <= there.mean <= there.high


@given(LOSSES)
def test_equal_losses_are_equal(losses: list[float]) -> None:
    assert paired_difference(losses, losses).verdict == "equal"


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(2, 12))
def test_the_suggested_number_of_seeds_is_the_smallest_that_decides(
    center: float, spread: float, pairs: int
) -> None:
    others = [2 + center + spread * (-1) ** i for i in range(pairs)]
    found = paired_difference([2.0] * pairs, others)
    differences = [other - 2.0 for other in others]
    size, sigma = abs(mean(differences)), stdev(differences)
    decided = [n for n in range(pairs, MAX_SEEDS + 1) if half_width(sigma, n) < size]
    assert found.seeds_needed == (decided[0] if decided else None)


def test_one_seed_decides_nothing() -> None:
    found = paired_difference([2.0], [1.0])
    assert found.verdict == "undecided"
    assert "one seed shows no spread" in explain("b", "a", found)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([1.9, 1.91, 1.9], "b is better: 0.0967 nats lower than a (95 % interval"),
        ([2.1, 2.11, 2.1], "b is worse: 0.1033 nats higher than a (95 % interval"),
        ([2.0, 1.9, 2.0], "b is undecided: 0.0333 nats lower than a (95 % interval"),
        ([2.0, 2.0, 2.0], "b has the same loss as a"),
        ([2.3, 2.0, 1.7], "100 seeds are too few"),
    ],
)
def test_verdict_in_words(others: list[float], words: str) -> None:
    assert words in explain("b", "a", paired_difference([2.0] * 3, others))


NET, OPTIMIZER = "model.net.class_path", "model.optimizer.class_path"


def settings(net: str = "x.GPT", optimizer: str = "x.AdamW", **other: str) -> dict[str, str]:
    own = {"AdamW": {"lr": "0.01"}, "Muon": {"lr": "0.02", "adamw_lr": "0.01"}}
    arguments = own[optimizer.rpartition(".")[2]]
    values = {f"model.optimizer.{name}": value for name, value in arguments.items()}
    return {NET: net, OPTIMIZER: optimizer, "code_sha256": net, **values, **other}


def test_another_recipe_beside_another_network_is_named_with_its_class_only() -> None:
    pair = {"a": settings(), "b": settings("x.Mine", "x.Muon", **{"trainer.precision": "bf16"})}
    different = differing_settings(pair)
    assert unequal_settings(different) == {
        "model.optimizer": ["AdamW", "Muon"],
        "trainer.precision": ["-", "bf16"],
    }
    text = comparison.describe_unequal(unequal_settings(different))
    assert "model.optimizer (AdamW, Muon); trainer.precision (-, bf16)" in text


@pytest.mark.parametrize(
    ("other", "varied"),
    [
        (settings("x.Mine"), []),
        (settings(optimizer="x.Muon"), []),
        (settings(**{"data.context": "16"}), []),
        (settings("x.Mine", optimizer="x.Muon"), ["model.net", "model.optimizer"]),
    ],
)
def test_what_is_compared_is_no_reason_for_a_warning(
    other: dict[str, str], varied: list[str]
) -> None:
    assert unequal_settings(differing_settings({"a": settings(), "b": other}), varied) == {}


def make_comparison(folder: Path) -> Comparison:
    outcomes = {}
    for label, losses in {"a": (2.0, 2.1), "b": (1.9, 2.0)}.items():
        runs = [folder / "runs" / label / f"version_{i}" for i in range(2)]
        outcomes[label] = [
            Outcome(1337 + i, run, loss, loss - 0.1, 1.8, 60.0, 1234)
            for i, (run, loss) in enumerate(zip(runs, losses, strict=True))
        ]
    return Comparison(outcomes, {}, ["the configs also differ in x"], "2 cores")


def test_table_has_means_ranges_verdicts_warnings_and_conditions(tmp_path: Path) -> None:
    result = make_comparison(tmp_path)
    text = result.markdown()
    for words in (
        "2.0500 (2.0000 to 2.1000)", "-0.1000", "| better", "1,234", "seeds 1337, 1338", "2 cores",
        "**Warning:** the configs also differ in x", "b is better: 0.1000 nats lower than a",
    ):  # fmt: skip
        assert words in text
    assert max(map(len, result.text().splitlines()[:3])) <= 80


def test_report_takes_the_runs_of_a_comparison_also_after_a_move(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    result = make_comparison(folder)
    for runs in result.outcomes.values():
        for run in runs:
            run.folder.mkdir(parents=True)
            (run.folder / "config.yaml").write_text("{}", encoding="utf-8")
    (folder / "c.json").write_text(result.json(folder), encoding="utf-8")
    moved = folder.rename(tmp_path / "new")
    names = [run.relative_to(moved).as_posix() for run in reading.find_runs([moved / "c.json"])]
    assert names == [f"runs/{label}/version_{i}" for label in "ab" for i in range(2)]


@pytest.mark.parametrize("text", ["", "[]", '{"variants": [{"runs": [{"folder": "gone"}]}]}'])
def test_report_refuses_a_json_that_is_no_comparison(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.json"):
        reading.find_runs([path])


def test_json_has_null_where_an_interval_is_unlimited(tmp_path: Path) -> None:
    result = make_comparison(tmp_path)
    one = result._replace(outcomes={label: runs[:1] for label, runs in result.outcomes.items()})
    assert json.loads(one.json(tmp_path))["variants"][1]["low"] is None
