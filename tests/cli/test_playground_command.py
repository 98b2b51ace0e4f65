"""The command `playground`: which runs become models of the page, and which are refused."""

import json
import re
import sys
from pathlib import Path

import pytest
from laws import train_small
from tiny import Refusal

from lit_gpt_scratch.cli import main

MODULE = "module_of_a_learner"
SOURCE = """
import torch
from lit_gpt_scratch.models import FusedAttention

class OwnAttention(FusedAttention):
    pass

class OwnOptimizer(torch.optim.SGD):
    pass
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs. Two of them need the plugin: for an attention, and for an optimizer."""
    root = tmp_path_factory.mktemp("root")
    (root / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
    own, sgd = f"{MODULE}.OwnAttention", f"{MODULE}.OwnOptimizer"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train_small(root, "--name=modern")
        train_small(root, "--name=modern")
        train_small(root, "--model.net=Bigram", "--name=bigram")
        net = ["--model.net=GPT", "--model.net.layers=1", "--model.net.width=16"]
        train_small(root, *net, f"--model.net.attention={own}", "--name=own")
        train_small(root, *net, f"--model.optimizer={sgd}", "--model.optimizer.lr=.1", "--name=sgd")
    sys.modules.pop(MODULE, None)
    return root


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


def names(page: Path) -> list[str]:
    """Return the names of a page's models."""
    (found,) = re.findall(r"^const DESCRIPTIONS = (.+);$", page.read_text("utf-8"), re.MULTILINE)
    return [description["name"] for description in json.loads(found)]


def test_without_runs_it_takes_the_newest_run_of_each_name_and_leaves_out_what_it_cannot_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["playground", "--output", str(tmp_path / "p.html")])
    said = capsys.readouterr()
    assert sorted(names(tmp_path / "p.html")) == ["bigram", "modern"]
    notices = [line for line in said.err.splitlines() if line.startswith("Notice:")]
    assert len(notices) == 2
    assert all("--plugin" in line and line.endswith("It is left out.") for line in notices)
    assert said.out.startswith(f"{tmp_path / 'p.html'}  0.")


def test_with_a_plugin_it_shows_networks_of_this_program_and_refuses_those_of_the_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint may need the user's module for its optimizer only."""
    page = tmp_path / "p.html"
    flags = ["--plugin", MODULE, "--output", str(page)]
    main(["playground", "runs/sgd", *flags])
    assert names(page) == ["sgd"]
    with pytest.raises(SystemExit):
        main(["playground", "runs/own", "runs/bigram", *flags])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"own uses {MODULE}.OwnAttention, which the playground does not know" in error
    assert names(page) == ["sgd"], "the page stays as it was"


def test_mistakes_are_one_line_and_write_nothing(refusal: Refusal, root: Path) -> None:
    assert "no such file" in refusal("playground", root / "runs" / "missing.ckpt")
    assert "does not exist" in refusal("playground")
    other = root / f"{MODULE}.py"
    run = root / "runs/bigram/version_0/checkpoints/best.ckpt"
    assert "is no playground" in refusal("playground", run, "--output", other)
    assert "cannot be written" in refusal("playground", run, "--output", other / "p.html")
    assert other.read_text("utf-8") == SOURCE
