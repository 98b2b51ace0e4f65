"""`fit`, `compare` and `load` for notebooks: exceptions, interrupts, the live curve."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient

import lit_gpt_scratch as lgs
from lit_gpt_scratch.cli import compare, display
from lit_gpt_scratch.cli.messages import suggestion
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.models import MeanAttention
from lit_gpt_scratch.runs.folder import read_mapping

SMALL = {
    "corpus": "sample", "sample_size": 20_000, "context": 8, "batch_size": 4, "max_steps": 4,
    "val_check_interval": 2, "accelerator": "cpu", "log_every_n_steps": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_returns_the_run_and_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    run = lgs.fit("bigram", **SMALL, lr=0.5)
    assert [*run.losses] == [2, 4]
    assert run.is_finished
    assert run.folder == Path("runs/bigram/version_0")
    assert run.model.optimizers.__self__ is run.model
    assert "finished" in repr(run)
    assert capsys.readouterr().err == "", "a notebook shows standard error in red"
    best = lgs.load("best")
    said = capsys.readouterr()
    assert (said.out[:8], said.err) == ("best is ", "")
    assert torch.equal(best.net.table.weight, lgs.load(run).net.table.weight)
    longer = run.resume(max_steps=6, val_check_interval=2)
    assert [*longer.losses] == [2, 4, 6]
    assert longer.folder.resolve() == run.folder.resolve()


def test_an_interrupt_saves_the_run_which_resume_continues(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = {"step": 2, "name": "SIGINT"}
    callback = {"class_path": "extra_callbacks.SendSignal", "init_args": arguments}
    run = lgs.fit("bigram", **SMALL, callbacks=[callback])
    assert not run.is_finished
    assert "The run is saved: resume() continues it." in capsys.readouterr().out
    assert "resume() continues it" in repr(run)
    assert (run.folder / "checkpoints" / "last.ckpt").exists()
    done = run.resume()
    assert done.is_finished
    assert [*done.losses] == [2, 4]


def test_without_a_checkpoint_no_text_promises_that_resume_works(
    capsys: pytest.CaptureFixture[str],
) -> None:
    callback = {"class_path": "extra_callbacks.SendSignal", "init_args": {"step": 2}}
    run = lgs.fit("bigram", **SMALL, callbacks=[callback], enable_checkpointing=False)
    assert "stopped, nothing is saved" in repr(run)
    assert "resume()" not in capsys.readouterr().out


def test_seed_is_that_of_all_random_numbers() -> None:
    """As the command line suggests for --seed. The data's seed follows it."""
    run = lgs.fit("bigram", **SMALL, seed=3)
    settings = read_mapping(run.folder / "config.yaml")
    assert (settings["seed_everything"], settings["data"]["seed"]) == (3, 3)
    assert suggestion("seed", ["data.seed", "seed_everything"]) == ": did you mean seed_everything?"


def test_compare_takes_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(compare, "compare", lambda *given: calls.append(given))
    lgs.compare("single_head", seeds=2, vary={"lr": [0.1, 0.2]}, at_once=1, context=8)
    ((variants, *_, varied),) = calls
    shared = ["--data.context=8"]
    assert variants == {
        f"lr={lr}": ["--config", "single_head", f"--model.optimizer.lr={lr}", *shared]
        for lr in (0.1, 0.2)
    }
    assert varied == ("model.optimizer.lr",)
    for wrong in ({"seed": 3}, {"vary": {"seed": [3, 4]}}):
        with pytest.raises(InputError, match="compare sets seed_everything itself"):
            lgs.compare("single_head", **wrong)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("bigrm", {}, "--config bigrm: No such file"),
        ("bigram", {"context": 0}, "--data.context is 0"),
        ("bigram", {"widht": 64}, "there is no 'widht': did you mean"),
        ("transformer", {"dropout": 0.5}, "model.net.dropout or model.net.attention.dropout"),
        ("bigram", {"model.optimizer.lr": "fast"}, "--model.optimizer.lr is 'fast'"),
    ],
)
def test_a_mistake_is_an_exception_with_the_line_of_the_command(
    config: str, changes: dict[str, object], message: str, here: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        lgs.fit(config, **{**SMALL, **changes})
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lgs.fit(None), "config is None"),
        (lambda: lgs.fit("bigram", lr=object()), "cannot be the value of a flag"),
        (lambda: lgs.compare(["bigram", "mean"]), "config is ['bigram', 'mean']"),
        (lambda: lgs.compare("bigram"), "there is one variant"),
        (lambda: lgs.compare("bigram", "mean", seeds="1"), "seeds is '1'"),
        (lambda: lgs.compare("bigram", "mean", seeds=0), "seeds is 0"),
        (lambda: lgs.compare("bigram", vary={"lr": 0.01}), "vary has 0.01: give values"),
        (lambda: lgs.compare("bigram", vary={"lr": "0.01"}), "vary has '0.01'"),
        (lambda: lgs.compare("bigram", vary={"lr": []}), "vary has []"),
        (lambda: lgs.compare("bigram", vary=["lr"]), "vary has None"),
    ],
)
def test_a_wrong_type_is_an_input_error(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        call()


def test_values_may_be_numbers_of_numpy_and_a_config_may_be_a_path(here: Path) -> None:
    (here / "own.yaml").write_text("model: {net: Bigram}", encoding="utf-8")
    run = lgs.fit(here / "own.yaml", **SMALL, lr=np.float32(0.5))
    assert read_mapping(run.folder / "config.yaml")["model"]["optimizer"]["init_args"]["lr"] == 0.5


def test_a_value_may_be_a_class() -> None:
    run = lgs.fit("single_head", **SMALL, attention=MeanAttention)
    assert isinstance(run.model.net.attention, MeanAttention)


def test_resume_before_the_first_checkpoint_is_refused() -> None:
    run = lgs.fit("bigram", **SMALL, enable_checkpointing=False)
    with pytest.raises(InputError, match="has no checkpoint yet"):
        run.resume()


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, lit_gpt_scratch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


POINTS = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 20)), max_size=20)


@given(POINTS, POINTS, st.none() | st.floats(0, 1))
def test_the_curve_is_inside_its_picture(
    train: list[tuple[float, float]], val: list[tuple[float, float]], part: float | None
) -> None:
    text = display.draw({"train/loss": train, "val/loss": val}, part, "step 1 of <2>")
    tree = ElementTree.fromstring(f"<div>{text}</div>")
    assert "step 1 of <2>" in "".join(tree.itertext())
    for line in tree.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= display.WIDTH
            assert 0 <= y <= display.HEIGHT


@pytest.mark.slow
def test_a_real_kernel_shows_a_curve_and_nothing_red(here: Path) -> None:
    flags = ", ".join(f"{name}={value!r}" for name, value in SMALL.items())
    cells = [
        f"import lit_gpt_scratch as lgs\nrun = lgs.fit('bigram', {flags})",
        "lgs.fit('bigram', context=0)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(notebook, kernel_name="python3", timeout=120, allow_errors=True)
    trained, refused = client.execute(cwd=str(here)).cells
    curves = [o for o in trained.outputs if o.output_type == "display_data"]
    assert len(curves) == 1, "redrawn in place"
    assert "step 4 of 4" in curves[0]["data"]["text/html"]
    assert "<polyline" in curves[0]["data"]["text/html"]
    assert not [o for o in trained.outputs if o.get("name") == "stderr"]
    (error,) = refused.outputs
    assert (error["ename"], error["evalue"]) == (
        "InputError",
        "--data.context is 0: it must be at least 1.",
    )
