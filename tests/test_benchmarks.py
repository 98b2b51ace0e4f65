"""The benchmarks' helper functions and where their tables go; no measurement is run here."""

import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from laws import assert_causal, parse
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.generation.sampling import SamplingSettings, generate
from lit_gpt_scratch.models import GPT, Ensemble, ModernGPT
from lit_gpt_scratch.runs.comparison import Outcome
from lit_gpt_scratch.runs.reading import flatten
from lit_gpt_scratch.training import Muon

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # as Python does for the scripts in that folder

import ablation  # noqa: E402
import bench  # noqa: E402
import common  # noqa: E402
import experiments  # noqa: E402
import growth  # noqa: E402
import ladder  # noqa: E402
import long  # noqa: E402
import variants  # noqa: E402
import versions  # noqa: E402

VARIANTS = [
    value
    for value in vars(variants).values()
    if isinstance(value, type) and issubclass(value, variants.Variant)
]
ROOT, TABLES = common.ROOT, common.TABLES
README = ROOT / "README.md"
OUTCOMES = {"bigram": [Outcome(seed, Path(), 2.5, 2.5, 2.4, seed, 4225) for seed in common.SEEDS]}
TEXTS = {"bigram": "a sample"}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the benchmarks take for the project's, with copies of both README files."""
    for path in (README, TABLES):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for module in (common, ladder):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(common, "TABLES", tmp_path / TABLES.relative_to(ROOT))
    return tmp_path


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin (make {name}) -->\n", f"<!-- {name}: end -->"


def section(path: Path, name: str) -> str:
    begin, end = markers(name)
    return path.read_text(encoding="utf-8").split(begin)[1].split(end)[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_every_variant_of_the_ablation_is_causal(variant: type[variants.Variant]) -> None:
    torch.manual_seed(0)
    net = variant(11, 8, layers=2, width=16)
    assert_causal(net, 11, 8)
    assert net(torch.zeros(1, 1, dtype=torch.long)).isfinite().all(), "a text of one character"


def test_every_variant_is_in_the_table() -> None:
    listed = " ".join(flag for flags in ablation.VARIANTS.values() for flag in flags)
    assert all(f"variants.{variant.__name__}" in listed for variant in VARIANTS)


# The settings behind the numbers in the labels of the ablation.
NUMBERS: dict[str, dict[str, float]] = {
    "AdamW (lr 0.004) instead of Muon": {"model.optimizer.lr": 0.004},
    "cosine decay to 2 % of the peak, warm-up 20, instead of plateau and line": {
        "model.schedule.final": 0.02,
        "model.schedule.warmup": 20,
    },
    "1 head": {"model.net.attention.heads": 1},
    "4 heads": {"model.net.attention.heads": 4},
    "3 Newton-Schulz iterations": {"model.optimizer.iterations": 3},
    "as it is, with 700 steps": {"trainer.max_steps": 700},
    "weight decay 0.1": {"model.optimizer.weight_decay": 0.1},
    "weight decay 0.5": {"model.optimizer.weight_decay": 0.5},
    "width 256, weight decay 0.5": {
        "model.net.width": 256,
        "model.optimizer.weight_decay": 0.5,
    },
    "dropout 0.1": {"model.net.dropout": 0.1},
    "weights averaged over about 20 steps": {"trainer.callbacks.decay": 1 - 1 / 20},
}


@pytest.mark.parametrize("label", [k for k in ablation.VARIANTS if re.search(r"\d", k)])
def test_a_variant_trains_with_the_numbers_of_its_label(label: str) -> None:
    """Also where its class replaces another: it keeps values of the config."""
    parsed = parse("--config=gpt_cpu", *ablation.VARIANTS[label]).config.as_dict()
    [parsed["trainer"]["callbacks"]] = parsed["trainer"]["callbacks"] or [{}]
    settings = dict(flatten(parsed))
    assert {name: float(settings[name]) for name in NUMBERS[label]} == NUMBERS[label]


def test_normuon_changes_the_directions_of_muon_but_not_the_size_of_a_step() -> None:
    def step(kind: type[Muon]) -> Tensor:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8, 4))
        weight.grad = torch.randn(8, 4) * torch.arange(1, 9)[:, None]
        before = weight.detach().clone()
        kind([{"params": [weight], "name": "matrices"}]).step()
        return weight.detach() - before

    muon, nor = step(Muon), step(variants.NorMuon)
    torch.testing.assert_close(nor.norm(), muon.norm())
    spread = [update.norm(dim=1).std() / update.norm(dim=1).mean() for update in (nor, muon)]
    assert spread[0] < 1e-3 < spread[1]


def test_two_characters_ahead_adds_a_gradient_in_training_only() -> None:
    torch.manual_seed(0)
    net, ids = variants.TwoAhead(11, 8, layers=1, width=16), torch.randint(11, (2, 8))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    logits = net.train()(ids)
    assert torch.equal(logits, net.eval()(ids))
    (0 * logits.sum()).backward()
    hidden = net.second["unembed"].character.weight.grad
    with torch.no_grad():
        x = net.blocks[0](net.embed(ids))
    copy = net.second["unembed"].requires_grad_()
    copy.zero_grad()
    again = F.cross_entropy(copy(x[:, :-2]).flatten(0, 1), ids[:, 2:].flatten())
    (0.3 * again).backward()
    torch.testing.assert_close(hidden, copy.character.weight.grad)


def test_snapshots_average_the_ends_of_all_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants.Cycles, "length", 2)
    torch.manual_seed(0)
    net, ids = variants.Snapshots(11, 8, layers=1, width=16), torch.randint(11, (2, 8))
    expected = []
    for step in range(4):  # the end of a cycle is step 2 and 4
        net.train()(ids)
        nn.init.normal_(net.unembed.character.weight)
        if step % 2:
            own = ModernGPT(11, 8, layers=1, width=16).eval()
            own.load_state_dict(net.state_dict())
            expected.append(own(ids).softmax(-1))
    torch.testing.assert_close(net.eval()(ids).softmax(-1), torch.stack(expected).mean(0))


def test_members_side_by_side_equal_members_one_after_the_other() -> None:
    ensemble = experiments.randomised(Ensemble(5, 8, partial(ModernGPT, layers=2, width=8), 3))
    ids = torch.randint(5, (6, 8))
    found = experiments.together(ensemble, experiments.side_by_side, ids)
    torch.testing.assert_close(found, ensemble(ids))


def test_a_cache_of_fixed_size_gives_the_same_text() -> None:
    net, settings = GPT(65, experiments.CONTEXT).eval(), SamplingSettings(max_new_tokens=40)
    found = experiments.write(net, partial(experiments.static_step, net), settings)
    assert found.equal(generate(net, torch.zeros(1, 1, dtype=torch.long), 256, settings))


def test_exponent_is_that_of_the_power_law() -> None:
    sizes = (8, 16, 32, 64)
    assert growth.exponent(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_seconds_to_a_loss_end_where_the_curve_first_reaches_it() -> None:
    run = long.Run([1, 2, 3, 4], [10.0, 20.0, 30.0, 40.0], [2.0, 1.5, 1.6, 1.4], 1.4, 1.0, 1.3, 7)
    assert [run.seconds_to(loss) for loss in (2.5, 1.5, 1.45, 1.4)] == [10, 20, 40, 40]
    assert math.isnan(run.seconds_to(1.39))


def test_versions_are_compared_seed_by_seed() -> None:
    old = [versions.Curve([50.0, 100.0], [2.0, 1.5]), versions.Curve([100.0, 200.0], [2.0, 1.4])]
    new = [versions.Curve([40.0, 80.0], [1.5, 1.3]), versions.Curve([60.0, 120.0], [1.6, 1.45])]
    rows = versions.report("gpt", {versions.SIDES[0]: old, "new": new}, 1.5).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (rows[2], rows[3])]
    assert cells == [
        ["old version", "150 (100 to 200)", "1.00 (1.00 to 1.00)", "150 (100 to 200)",
         "1.4500 (1.4000 to 1.5000)"],
        ["new", "100 (80 to 120)", "0.70 (0.60 to 0.80)", "80 (40 to 120)",
         "1.3750 (1.3000 to 1.4500)"],
    ]  # fmt: skip


def test_replace_section_changes_only_the_text_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    begin, end = markers("speed")
    path.write_text(f"before\n{begin}old\n{end}\nafter\n", encoding="utf-8")
    common.replace_section(path, "speed", "| new |")
    assert path.read_text(encoding="utf-8") == f"before\n{begin}| new |\n{end}\nafter\n"


@pytest.mark.parametrize("name", ["ladder", "ablation", "long", "bench", "versions"])
def test_each_table_has_one_place_in_the_readme_of_the_benchmarks(name: str) -> None:
    text = TABLES.read_text(encoding="utf-8")
    assert [text.count(marker) for marker in markers(name)] == [1, 1]
    main = README.read_text(encoding="utf-8")
    assert [main.count(marker) for marker in markers(name)] == [name == "ladder"] * 2


@pytest.mark.parametrize("name", ["ablation", "long", "bench", "versions"])
def test_publish_writes_a_table_into_the_readme_of_the_benchmarks(name: str, copies: Path) -> None:
    common.publish(name, "| new |", readme=True)
    assert section(common.TABLES, name) == "| new |\n"
    assert (copies / "README.md").read_bytes() == README.read_bytes()
    assert (copies / "runs" / f"{name}.md").read_text(encoding="utf-8") == "| new |"


def test_parts_that_were_not_measured_keep_their_tables() -> None:
    """The parts stay in their order."""
    section = "**step**: One step.\n\n| 1 |\n\n**time to loss**: Seconds.\n\n| 2 |\n"
    new = {"callbacks": "**callbacks**: New.\n\n| 3 |", "time to loss": "**time to loss**: New."}
    expected = ["**step**: One step.\n\n| 1 |", new["time to loss"], new["callbacks"]]
    assert bench.combine(new, section) == "\n\n".join(expected)
    assert bench.combine({}, common.read_section(common.TABLES, "bench")) == common.read_section(
        common.TABLES, "bench"
    )


def test_publish_changes_no_readme_unless_asked(copies: Path) -> None:
    common.publish("bench", "| new |", readme=False)
    ladder.publish_ladder(OUTCOMES, TEXTS, readme=False)
    assert common.TABLES.read_bytes() == TABLES.read_bytes()
    assert (copies / "README.md").read_bytes() == README.read_bytes()
    assert "2.5" in (copies / "runs" / "ladder.md").read_text(encoding="utf-8")


def test_the_ladder_writes_its_table_into_both_readmes_and_samples_into_one(copies: Path) -> None:
    ladder.publish_ladder(OUTCOMES, TEXTS, readme=True)
    main, tables = (section(path, "ladder") for path in (copies / "README.md", common.TABLES))
    assert main == f"{ladder.table(OUTCOMES)}\n"
    assert tables.startswith(ladder.table(OUTCOMES, "../../configs"))
    assert "a sample" in tables
    assert "a sample" not in main


@pytest.mark.parametrize(
    ("path", "configs"),
    [(README, "configs"), (TABLES, "../../configs")],
    ids=["main", "benchmarks"],
)
def test_each_row_of_the_ladder_links_to_its_config(path: Path, configs: str) -> None:
    links = re.findall(r"\]\((.*?)\)", ladder.table(OUTCOMES, configs))
    assert len(links) == len(ladder.REFERENCE)
    assert all((path.parent / link).is_file() for link in links)
    assert [link for link in links if f"]({link})" not in section(path, "ladder")] == []
