"""Two parts of `make bench`: the speed of the data module, and the start of commands."""

import contextlib
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from common import (
    QUICK,
    Figures,
    fit,
    median_and_range,
    rounds,
    seconds,
    under_trainer,
)

from lit_gpt_scratch.data.corpus import open_corpus
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.data.token_cache import load_tokens
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.runs.comparison import markdown_table

PROGRAM = [sys.executable, "-m", "lit_gpt_scratch"]
SHAPES = {"gpt_cpu, 16 x 256": (16, 256), "large, 512 x 1024": (512, 1024)}
CHARACTERS = 1 << 25  # in one measurement


def characters_per_second(data: CharDataModule) -> float:
    """Return how many characters (ids in int64) a data module draws and gathers in a second."""
    count = CHARACTERS // (data.batch_size * data.context)
    spent = seconds(
        lambda: [data.read_windows(data.train_windows(k)).inputs.shape for k in range(count)]
    )
    return count * data.batch_size * data.context / spent


def throughput(_peer: object, count: int) -> tuple[Figures, str]:
    """Characters per second that the data module delivers, and that training gpt_cpu uses."""
    sides = {}
    for name, (batch, context) in SHAPES.items():
        data = CharDataModule(batch_size=batch, context=context)
        data.open()
        sides[name] = partial(characters_per_second, data)
    taken = "taken in training gpt_cpu"
    sides[taken] = lambda: 16 * 256 * 1000 / under_trainer("gpt_cpu", 150)
    found = rounds(count, sides)
    base = median(found[taken])
    table = [[k, median_and_range(v, 0), f"{median(v) / base:,.0f}"] for k, v in found.items()]
    return found, markdown_table([["shape of a batch", "characters/s", "ratio"], *table])


def run(*command: str, cwd: Path | None = None) -> float:
    """Return the seconds of a process from its start to its end."""
    return seconds(lambda: subprocess.run(command, cwd=cwd, capture_output=True, check=True))


def start(_peer: object, count: int) -> tuple[Figures, str]:
    """Speed of encoding and caching a corpus, and seconds until a command prints its output."""
    text = "".join(chr(32 + (7 * i) % 90) for i in range(1 << 20)) * 64
    tokenizer = CharTokenizer.of(text)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        old = os.environ.get("XDG_CACHE_HOME")
        stack.callback(lambda: old is None or os.environ.update(XDG_CACHE_HOME=old))
        path = Path(folder) / "text.txt"
        names = iter(range(1000))

        def cache() -> float:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache{next(names)}"  # a new, empty cache
            path.write_text(text, encoding="utf-8")
            return 64 / seconds(lambda: load_tokens(open_corpus(str(path)), None))

        throughput = rounds(
            count,
            {
                "encode, MB/s": lambda: 64 / seconds(lambda: tokenizer.encode_array(text)),
                "read, encode and cache, MB/s": cache,
            },
        )
    cli = fit("gpt_cpu", *QUICK, "--trainer.max_steps=1")
    checkpoint = str(cli.folder / "checkpoints" / "last.ckpt")
    ask = [*PROGRAM, "predict", "--ckpt_path", checkpoint, "--max_new_tokens", "100"]
    started = rounds(
        count,
        {
            "import torch, s": partial(run, sys.executable, "-c", "import torch"),
            "import lightning.pytorch, s": partial(
                run, sys.executable, "-c", "import lightning.pytorch"
            ),
            "lit-gpt-scratch --help, s": partial(run, *PROGRAM, "--help"),
            "predict of 100 characters, s": partial(run, *ask),
            "the same under Lightning's Trainer, s": partial(run, *ask, "--trainer.devices", "1"),
        },
    )
    found = throughput | started
    table = [[k, median_and_range(v, 2)] for k, v in found.items()]
    return found, markdown_table([["", ""], *table])
