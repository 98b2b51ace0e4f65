"""Run the scripts of a nanoGPT checkout without changes, for `make bench` and `make gpu`.

https://github.com/karpathy/nanoGPT
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# The CPU command of nanoGPT's README, with evaluation at the first and the last step only.
RECIPE = [
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--log_interval=1",
    "--eval_iters=1", "--always_save_checkpoint=True", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0",
]  # fmt: skip

# nanoGPT's own settings for a GPU, with the time of each step, and shorter estimates of the loss.
GPU_RECIPE = ["config/train_shakespeare_char.py", "--log_interval=1", "--eval_iters=20"]
SMALLEST = [  # to try it on a CPU
    "--device=cpu", "--compile=False", "--max_iters=6", "--eval_interval=3", "--eval_iters=1",
    "--block_size=16", "--batch_size=2", "--n_layer=1", "--n_head=2", "--n_embd=16",
]  # fmt: skip


def step_seconds(output: str) -> dict[int, float]:
    """Return the seconds of each step that train.py has printed."""
    found = re.findall(r"^iter (\d+): loss [\d.]+, time ([\d.]+)ms", output, re.MULTILINE)
    return {int(step): float(ms) / 1000 for step, ms in found}


def estimated_losses(output: str) -> dict[int, float]:
    """Return the validation losses, by step, that train.py has estimated on random batches."""
    found = re.findall(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)", output, re.MULTILINE)
    return {int(step): float(loss) for step, loss in found}


class NanoGPT:
    """A checkout of nanoGPT.

    Args:
        folder: The checkout. nanoGPT writes its prepared data and its checkpoints into it.
        corpus: The text to train on.
    """

    def __init__(self, folder: Path, corpus: Path) -> None:
        self.folder = folder
        spec: Any = importlib.util.spec_from_file_location("nanogpt", folder / "model.py")
        self.module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt"] = self.module  # its dataclass needs to find its own module
        spec.loader.exec_module(self.module)
        self.data = folder / "data" / "shakespeare_char"
        if not (self.data / "val.bin").exists():
            shutil.copy(corpus, self.data / "input.txt")
            self._run("data/shakespeare_char/prepare.py")

    def _run(self, *args: str) -> str:
        command = [sys.executable, *args]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} in {self.folder}:\n{done.stderr}")
        return done.stdout

    def train(self, steps: int) -> list[float]:
        """Train, and return the seconds of each step, except steps that also evaluate."""
        limits = [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}"]
        found = step_seconds(self._run("train.py", *RECIPE, *limits))
        return [spent for step, spent in found.items() if step % steps]

    @torch.no_grad()
    def exact_validation(self) -> float:
        """Return the last checkpoint's exact validation loss, in nats per character."""
        path = self.folder / "out-shakespeare-char" / "ckpt.pt"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = self.module.GPT(self.module.GPTConfig(**checkpoint["model_args"])).eval()
        model.load_state_dict(checkpoint["model"])
        ids = torch.from_numpy(np.fromfile(self.data / "val.bin", dtype=np.uint16).astype(np.int64))
        context = checkpoint["model_args"]["block_size"]
        total = 0.0
        for start in range(0, len(ids) - 1, context):
            x, y = ids[start : start + context], ids[start + 1 : start + 1 + context]
            logits, _ = model(x[None, : len(y)], y[None])
            total += F.cross_entropy(logits[0], y, reduction="sum").item()
        return total / (len(ids) - 1)

    def net(self, context: int, layers: int, heads: int, width: int) -> Any:
        """Return a new, untrained network for generation."""
        sizes = {"block_size": context, "n_layer": layers, "n_head": heads, "n_embd": width}
        config = self.module.GPTConfig(vocab_size=65, dropout=0.0, bias=False, **sizes)
        return self.module.GPT(config).eval()
