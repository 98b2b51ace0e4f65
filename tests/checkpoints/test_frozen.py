"""Checkpoints, exports and configs of an older version still load everywhere.

The files in `frozen/` were written before the modules moved into rooms, by commit 9b83ee4, on the
built-in text: `modern` is an ensemble of two ModernGPTs with Muon, `classic` a GPT with AdamW.
"""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from lit_gpt_scratch import cli, inspection

FROZEN = Path(__file__).parent / "frozen"
# What that commit measured and wrote: the validation loss and a greedy text of each file, and the
# losses of steps 15 to 20 when it resumed.
LOSSES = {"modern": 3.865860939025879, "classic": 3.961294412612915}
TEXTS = {
    "modern": "ANSELM:r cangs cangs cangs cangs cang",
    "classic": "ANSELM:wewYOwYOw;jwIR;Ow;jwIR;Ow;jwIR",
}
RESUMED = {
    "modern": [3.845660448074341, 3.7637674808502197, 3.768935441970825, 3.753653049468994],
    "classic": [3.9564368724823, 3.938096761703491, 3.929701566696167, 3.9278790950775146],
}
CPU = "--trainer.accelerator=cpu"
FILES = [(name, name + end) for name in LOSSES for end in (".ckpt", "-export")]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_validate_gives_the_same_loss(name: str, file: str) -> None:
    done = cli.main(
        [
            "validate",
            f"--ckpt_path={FROZEN / file}",
            "--trainer.accelerator=cpu",
            "--trainer.precision=bf16-mixed",  # as that commit measured them
            "--trainer.logger=false",
        ]
    )
    assert float(done.trainer.callback_metrics["val/loss"]) == pytest.approx(LOSSES[name], abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_validate_reads_an_old_config_with_flags_that_it_does_not_use(name: str) -> None:
    files = [f"--config={FROZEN / name}.yaml", f"--ckpt_path={FROZEN / name}.ckpt"]
    done = cli.main(["validate", *files])  # in the config's precision
    assert float(done.trainer.callback_metrics["val/loss"]) == pytest.approx(LOSSES[name], abs=1e-3)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_predict_writes_the_same_text(
    name: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how = [
        "--temperature=0",
        "--max_new_tokens=30",
        "--prompt=ANSELM:",
        "--trainer.accelerator=cpu",
    ]
    cli.main(["predict", f"--ckpt_path={FROZEN / file}", *how])
    assert capsys.readouterr().out.rstrip("\n") == TEXTS[name]


@pytest.mark.parametrize("file", [file for _, file in FILES])
def test_inspection_opens_it(file: str) -> None:
    model = inspection.load(FROZEN / file)
    assert type(model.net).__module__.startswith("lit_gpt_scratch.models")
    assert inspection.next_characters(model, "ANSELM:").shape == (7, len(model.tokenizer))
    assert all(
        torch.isfinite(layer.weights).all() for layer in inspection.attention(model, "BEATA")
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_resumes_with_its_old_config_and_learns_the_same(name: str, tmp_path: Path) -> None:
    """In the folder that the old version made, by the command that it printed."""
    folder = tmp_path / "runs" / name / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    last = shutil.copy(FROZEN / f"{name}.ckpt", folder / "checkpoints" / "last.ckpt")
    config = shutil.copy(FROZEN / f"{name}.yaml", folder / "config.yaml")
    arguments = [f"--config={config}", f"--ckpt_path={last}", "--trainer.max_steps=20"]
    done = cli.main(["fit", *arguments, f"--trainer.default_root_dir={tmp_path}"])
    assert done.folder == folder
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"] or row["val/loss"]) for row in rows]
    assert losses == pytest.approx(RESUMED[name], abs=1e-4)
