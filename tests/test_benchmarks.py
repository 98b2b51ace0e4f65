"""The benchmarks' helper functions and where their tables go. Only `make gpu` runs here, tiny."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_causal, parse
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt_scratch.files import lock
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
import gpu  # noqa: E402
import growth  # noqa: E402
import ladder  # noqa: E402
import long  # noqa: E402
import nanogpt  # noqa: E402
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


@pytest.mark.parametrize("name", ["ladder", "ablation", "long", "bench", "versions", "gpu"])
def test_each_table_has_one_place_in_the_readme_of_the_benchmarks(name: str) -> None:
    text = TABLES.read_text(encoding="utf-8")
    assert [text.count(marker) for marker in markers(name)] == [1, 1]
    main = README.read_text(encoding="utf-8")
    assert [main.count(marker) for marker in markers(name)] == [name == "ladder"] * 2


@pytest.mark.parametrize("name", ["ablation", "long", "bench", "versions", "gpu"])
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


# `make gpu`

NANOGPT_OUTPUT = """step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2664, time 30512.11ms, mfu -100.00%
iter 1: loss 4.1634, time 9.00ms, mfu -100.00%
iter 249: loss 1.9634, time 11.50ms, mfu 18.31%
step 250: train loss 1.9000, val loss 2.0000
"""


def test_the_output_of_nanogpt_gives_times_and_estimates() -> None:
    assert nanogpt.step_seconds(NANOGPT_OUTPUT) == {0: 30.51211, 1: 0.009, 249: 0.0115}
    assert nanogpt.estimated_losses(NANOGPT_OUTPUT) == {0: 4.2823, 250: 2.0}


METRICS = """step,chars_per_sec,mfu,train_seconds,val/loss
1,,,2.0,4.1
50,1000,0.1,3.0,
100,4000,0.4,3.5,
100,,,3.6,1.46
120,5000,0.5,4.0,
120,,,4.1,1.5
"""


def test_figures_of_a_run_leave_out_the_interval_that_compiles(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS, encoding="utf-8")
    config = "data: {batch_size: 3, context: 30}\ntrainer: {max_steps: 1200}\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    (tmp_path / "probe.json").write_text('{"TFLOP a step": 0.5, "first step, s": 2}', "utf-8")
    assert gpu.figures_of(tmp_path) == {
        "steps": "120 of 1,200",
        "seconds of training": 4.1,
        "seconds of training to 1.4697": 3.6,
        "validation, last": 1.5,
        "validation, best": 1.46,
        "curve": [(1, 2.0, 4.1), (100, 3.6, 1.46), (120, 4.1, 1.5)],
        "ms a step": 20.0,
        "characters/s": 4500.0,
        "TFLOP a step": 0.5,
        "TFLOP/s": 25.0,
        "first step, s": 2,
        "utilisation (mfu)": 0.45,
    }
    (tmp_path / "metrics.csv").write_text("step,val/loss\n50,\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no validation"):
        gpu.figures_of(tmp_path)


def test_the_readme_lists_all_parts_in_their_order() -> None:
    found = re.findall(r"^\| `(\w+)` \| (.*) \|$", TABLES.read_text(encoding="utf-8"), re.MULTILINE)
    described = {name: " ".join(part.measure.__doc__.split()) for name, part in gpu.PARTS.items()}
    assert found == list(described.items())


def test_tables_show_figures_without_curves() -> None:
    figures = {"validation, best": 1.36789, "characters/s": 1234567.8, "curve": [[1, 2.0]]}
    figures |= {"equal to the last bit": True, "steps": "5 of 9"}
    result = {"ended": "ended", "seconds": 12.3, "figures": figures}
    left_out = {"ended": "left out: 3 s were left", "figures": {}}
    first, table, second = gpu.tables({"gpt": result, "seeds": left_out}).split("\n\n")
    assert first.startswith("**gpt**: The reference's recipe")
    assert first.endswith("(ended after 12 s)")
    assert second.endswith("(left out: 3 s were left)")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert cells == [
        ["validation, best", "1.3679"],
        ["characters/s", "1,234,568"],
        ["equal to the last bit", "True"],
        ["steps", "5 of 9"],
    ]


def test_without_a_gpu_it_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main([f"--out={tmp_path / 'out'}", "--budget=0"])
    assert stop.value.code == 2
    assert re.fullmatch(r"make gpu: error: no CUDA GPU .* --smoke .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--smoke"]], ids=["GPU", "smoke"])
def test_a_smoke_run_replaces_no_figures_of_a_gpu(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "publish", lambda *args: published.extend(args))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    assert gpu.main(["--budget=0", "--readme", *flags]) == 0
    _, _, readme, folder = published
    assert readme is not bool(flags)
    assert folder == tmp_path / "runs" / ("gpu-smoke" if flags else "gpu")
    assert [*json.loads((folder / "results.json").read_text(encoding="utf-8"))] == [*gpu.PARTS]


# Parts of a test; `hang` starts a process that holds the lock of a folder until it is killed.
PARTS = f"""
import subprocess, sys, time
sys.path[:0] = [{str(FOLDER)!r}, {str(ROOT)!r}]
import gpu

HOLD = "import pathlib, sys, time; from lit_gpt_scratch.files import lock; "
HOLD += "held = lock(pathlib.Path(sys.argv[1])); print(held, flush=True); time.sleep(600)"

def good(work):
    work.say("a figure", 1)
    work.run({{"a command": [sys.executable, "-c", "print('done')"]}})

def wrong(work):
    "It fails."
    work.say("before", 2)
    work.run({{"a wrong command": [sys.executable, "-c", "raise SystemExit('it is broken')"]}})

def stops(work):
    work.run({{"a long command": [sys.executable, "-c", "import time; time.sleep(600)"]}})
    work.say("its command was stopped", True)

def hang(work):
    command = [sys.executable, "-c", HOLD, str(work.out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    work.say("locked", "None" not in process.stdout.readline())
    time.sleep(600)

def costly(work):
    work.say("it was started", True)

gpu.SCRIPT, gpu.SLOW = gpu.Path(__file__), 1
limits = [(good, 60, 0), (wrong, 60, 0), (stops, 13, 0), (hang, 8, 0), (costly, 60, 10_000)]
gpu.PARTS = {{part.__name__: gpu.Part(part, *seconds) for part, *seconds in limits}}
sys.exit(gpu.main())
"""


@pytest.mark.needs("unix", "process groups")
def test_parts_run_in_turn_and_no_part_stops_the_next(tmp_path: Path) -> None:
    """Neither does one that fails, nor one that hangs: all its processes are killed in time."""
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    out = tmp_path / "out"

    def run(*args: str) -> dict[str, Any]:
        command = [sys.executable, str(tmp_path / "parts.py"), "--smoke", f"--out={out}", *args]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == (0 if args else 1), done.stderr
        assert (out / "gpu.md").read_text(encoding="utf-8") in done.stdout
        return json.loads((out / "results.json").read_text(encoding="utf-8"))

    results = run()
    assert {name: result["ended"] for name, result in results.items()} == {
        "good": "ended",
        "wrong": "failed: RuntimeError: a wrong command ended with 1: it is broken",
        "stops": "ended",
        "hang": "out of time",
        "costly": results["costly"]["ended"],
    }
    assert re.fullmatch(r"left out: \d+ s were left", results["costly"]["ended"])
    assert {name: result["figures"] for name, result in results.items()} == {
        "good": {"a figure": 1},
        "wrong": {"before": 2},
        "stops": {"its command was stopped": True},
        "hang": {"locked": True},
        "costly": {},
    }
    held = lock(out)
    assert held is not None, "a process of a killed part is left"
    held.release()
    again = run("--only", "costly", "good", "--skip", "good", "--budget", "20000")
    assert [*again] == [*results]
    assert again["costly"]["figures"] == {"it was started": True}
    assert {**again, "costly": None} == {**results, "costly": None}, "earlier figures stay"


RUN = ["steps", "seconds of training", "seconds of training to 1.4697", "seconds of the command"]
RUN += ["validation, last", "validation, best", "curve", "ms a step", "characters/s", "TFLOP/s"]
RUN += ["utilisation (mfu)", "first step, s", "peak memory, GB"]
PROMISED = {
    "environment": ["machine", "Python", "lightning", "torchmetrics", "numpy", "copy, GB/s",
                    "matrix product in bfloat16, TFLOP/s", "time of a small operation, us"],
    "gpt": RUN,
    "gpt_gpu": [*RUN, "validation, best, in fp32"],
    "gpt_cpu": RUN,
    "numerics": [
        f"{config}: {figure}" for config in ("gpt", "gpt_gpu", "gpt_cpu")
        for figure in ("fp32 logits, GPU minus CPU, largest", "bf16 logits minus fp32, relative",
                       "compiled gradients minus eager, relative")
    ],
    "resume": ["gpt: equal to the last bit", "gpt: equal rows of all tables",
               "gpt: largest difference of a weight"],
    "rungs": ["bigram: steps", "bigram: validation, last", "bigram: ms a step"],
    "generation": [*(f"{config}: {texts} texts, characters/s" for config in ("gpt_cpu", "gpt")
                     for texts in (1, 64)), "predict: 64 texts of 256 characters, s"],
    "nanogpt": ["nothing to do"],
    "seeds": [*(f"seed 1338: {figure}" for figure in RUN),
              "validation, last: mean and range of 2 seeds"],
    "gpt_rest": RUN,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs("unix", "process groups")
def test_all_parts_of_make_gpu_work_without_what_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    """That is W&B, plotly, the packages of tests, a network, and this package in site-packages."""
    lacks = tmp_path / "lacks"
    lacks.mkdir()
    for name in ("wandb", "plotly", "pytest", "hypothesis"):
        (lacks / f"{name}.py").write_text("raise ImportError('it is not here')", encoding="utf-8")
    command = [sys.executable, str(FOLDER / "gpu.py"), "--smoke", "--budget=3000", "--out=out"]
    environment = os.environ | {"PYTHONPATH": str(lacks)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {name: result["ended"] for name, result in results.items()} == dict.fromkeys(
        gpu.PARTS, "ended"
    )
    assert done.returncode == 0, done.stderr
    found = {name: result["figures"] for name, result in results.items()}
    missing = {
        name: [f for f in wanted if f not in found[name]] for name, wanted in PROMISED.items()
    }
    assert not any(missing.values()), missing
    assert found["gpt"]["steps"] == "4 of 6", "it was stopped, and has saved"
    assert found["gpt_rest"]["steps"] == found["seeds"]["seed 1338: steps"] == "6 of 6"
    assert found["gpt_rest"]["curve"][: len(found["gpt"]["curve"])] == found["gpt"]["curve"]
    assert found["resume"]["gpt: equal to the last bit"] is True
    assert found["resume"]["gpt: equal rows of all tables"] is True
    assert found["resume"]["gpt: largest difference of a weight"] == 0
    numbers = found["numerics"]
    assert max(value for name, value in numbers.items() if "fp32 logits" in name) == 0
    assert max(value for name, value in numbers.items() if "compiled" in name) < 0.05
    exact = found["gpt_gpu"]["validation, best, in fp32"]
    assert exact == pytest.approx(found["gpt_gpu"]["validation, best"], abs=0.01)
