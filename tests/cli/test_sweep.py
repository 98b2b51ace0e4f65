"""The sweep file is valid for W&B, and W&B's agent can run it."""

import importlib.util
import json
import os
import queue
import random
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from wandb.wandb_agent import Agent

from lit_gpt_scratch.runs import reading as logged

EXTRA = Path(__file__).parents[2] / "configs" / "extra"
SWEEP = yaml.safe_load((EXTRA / "sweep.yaml").read_text(encoding="utf-8"))


def test_the_sweep_is_valid_by_wandbs_own_schema() -> None:
    """The schema is in W&B's package `sweeps`."""
    package = importlib.util.find_spec("sweeps")
    assert package, "make setup installs it"
    assert package.origin
    schema = json.loads(
        (Path(package.origin).parent / "config" / "schema.json").read_text(encoding="utf-8")
    )
    validator = jsonschema.Draft7Validator(schema)
    assert not [error.message for error in validator.iter_errors(SWEEP)]
    assert [*validator.iter_errors(SWEEP | {"method": "guess"})], (
        "the schema refuses a wrong method"
    )


def value_of(parameter: dict[str, Any], number: int) -> Any:
    """Return a value of a parameter's search space."""
    if "values" in parameter:
        return random.Random(number).choice(parameter["values"])
    return parameter.get("value", parameter.get("min", 0) + 0.001 * number)


@pytest.mark.slow
def test_the_agent_runs_two_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own code expands the command; this test replaces the server's messages."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name, raising=False)  # the agent sets them
    monkeypatch.setenv("WANDB_SWEEP_ID", "local")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(EXTRA.parents[1])
    agent = Agent(api=None, queue=queue.Queue(), sweep_id="local", count=2)
    agent._sweep_command = SWEEP["command"]
    small = {"data.corpus": "sample", "data.sample_size": 20_000, "data.context": 16}
    small |= {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "wandb.mode": "offline"}
    small |= {"trainer.default_root_dir": str(tmp_path)}
    for number in range(2):
        values = {name: value_of(of, number) for name, of in SWEEP["parameters"].items()} | small
        args = {name: {"value": value} for name, value in values.items()}
        name = f"trial{number}"
        agent._command_run(
            {"type": "run", "run_id": name, "program": SWEEP["program"], "args": args}
        )
        assert agent._run_processes[name].wait(120) == 0
        folder = tmp_path / "runs" / "sweep" / f"version_{number}"
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert config["model"]["optimizer"]["init_args"]["lr"] == values["model.optimizer.lr"]
        # Where the agent says, and the run that the sweep knows.
        (segment,) = tmp_path.glob(f"wandb/offline-run-*-{name}")
        rows = logged.read_wandb(segment)
        assert SWEEP["metric"]["name"] in rows[4]


def test_every_option_of_the_sweep_and_of_the_overlay_is_one_of_fit() -> None:
    from laws import parse

    flags = [f"--{name}={value_of(of, 1)}" for name, of in SWEEP["parameters"].items()]
    parsed = parse(*(flag.replace("=configs/", f"={EXTRA.parent}/") for flag in flags))
    assert parsed.config.data.test_fraction == 0.1
    overlay = parse(
        "--config", str(EXTRA.parent / "gpt_cpu.yaml"), "--config", str(EXTRA / "wandb.yaml")
    )
    assert overlay.config.wandb.mode == "online"
    assert overlay.config.trainer.max_steps == 700
