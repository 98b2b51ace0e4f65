"""The benchmarks' own parts: what they measure is measured by hand, not here."""

import math
import sys
from pathlib import Path

import pytest
import torch
from laws import assert_causal

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # as Python does for the scripts there

import ablation  # noqa: E402
import bench  # noqa: E402
import common  # noqa: E402
import long  # noqa: E402

VARIANTS = [
    value
    for value in vars(ablation).values()
    if isinstance(value, type) and issubclass(value, ablation.Variant)
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_every_variant_of_the_ablation_is_causal(variant: type[ablation.Variant]) -> None:
    torch.manual_seed(0)
    net = variant(11, 8, layers=2, width=16)
    assert_causal(net, 11, 8)
    assert net(torch.zeros(1, 1, dtype=torch.long)).isfinite().all(), "a text begins with one"


def test_every_variant_is_in_the_table() -> None:
    """And every line names flags that the command line takes."""
    listed = " ".join(flag for flags in ablation.VARIANTS.values() for flag in flags)
    assert all(f"ablation.{variant.__name__}" in listed for variant in VARIANTS)


def test_an_exponent_is_that_of_the_power_law() -> None:
    sizes = (8, 16, 32, 64)
    assert bench.exponent(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_a_loss_is_reached_where_the_curve_first_is_at_most_that() -> None:
    run = long.Run([1, 2, 3, 4], [10.0, 20.0, 30.0, 40.0], [2.0, 1.5, 1.6, 1.4], 1.4, 1.0, 7)
    assert [run.seconds_to(loss) for loss in (2.5, 1.5, 1.45, 1.4)] == [10, 20, 40, 40]
    assert math.isnan(run.seconds_to(1.39))


def test_a_table_replaces_what_stood_between_its_markers_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    begin, end = "<!-- speed: begin (make speed) -->", "<!-- speed: end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    common.put_into(readme, "speed", "| new |")
    assert readme.read_text() == f"before\n{begin}\n| new |\n{end}\nafter\n"


@pytest.mark.parametrize("name", ["ladder", "ablation", "long", "bench"])
def test_the_readme_has_a_place_for_each_table(name: str) -> None:
    readme = (common.ROOT / "README.md").read_text()
    assert readme.count(f"<!-- {name}: begin (make {name}) -->\n") == 1
    assert readme.count(f"<!-- {name}: end -->") == 1
