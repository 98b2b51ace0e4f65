"""Writes run folders as `fit` does, without training, with known values."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from lit_gpt_scratch.data.corpus import TINY_SHAKESPEARE_SHA256


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def metric_rows(step: int, scale: float) -> list[dict[str, float]]:
    """Return a row of training and a row of validation, as `fit` logs them."""
    loss = scale * (1 + 3 / math.sqrt(step))
    at = {"step": step, "tokens_seen": 256.0 * step, "train_seconds": step / 50}
    val = {"val/loss": loss, "val/bpc": loss / math.log(2), "val/perplexity": math.exp(loss)}
    norms = {"embed": 0.5 / loss, "blocks.0": 1 / loss, "unembed": 2 / loss}
    for key in ("layer_grad_norm", "update_ratio", "attention_entropy"):
        val |= {f"{key}/{layer}": norm for layer, norm in norms.items()}
    speed = {"chars_per_sec": 1e4 + step % 7, "mfu": 0.3, "lr": loss / 100, "grad_norm": 1 / loss}
    return [{"train/loss": loss - 0.1, **speed, **at}, {**val, "val/gap": 0.1, **at}]


def write_fake_run(
    folder: Path,
    scale: float = 1.5,
    validations: int = 12,
    text: str = "To be",
    side: int = 60,
) -> Path:
    """Write a run's folder.

    Args:
        folder: The folder to create.
        scale: Factor of all losses and of the network's width.
        validations: Number of validations, one every 100 steps.
        text: The run's name, corpus and prompt.
        side: Width and height of its images, which are noise.
    """
    (folder / "attention").mkdir(parents=True)
    steps = [100 * (i + 1) for i in range(validations)]
    recorded = steps[:: 1 + validations // 24]
    data = {"sha256": TINY_SHAKESPEARE_SHA256, "val_fraction": 0.1, "test_fraction": 0.0}
    width = {"width": round(scale * 64)}
    net = {"class_path": "lit_gpt_scratch.models.ModernGPT", "init_args": width}
    config = {"data": data, "model": {"net": net}, "name": text}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "about.yaml").write_text(
        yaml.safe_dump({"parameters": 4225, "corpus": text}), encoding="utf-8"
    )
    write_csv(folder / "metrics.csv", [row for step in steps for row in metric_rows(step, scale)])
    write_csv(
        folder / "samples.csv",
        [{"step": s, "prompt": text, "text": f"{text}\nor not {s}"} for s in recorded],
    )
    write_csv(
        folder / "symbols.csv",
        [
            {"step": step, "symbol": symbol, "count": 1000 - i, "loss": scale + i / 100}
            for step in recorded
            for i, symbol in enumerate("a\n é<&>")
        ],
    )
    noise = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    for step in recorded:
        image = folder / "attention" / f"step_{step:06}.png"
        Image.fromarray(noise).save(image, compress_level=0)
    return folder
