"""The code that reads untrusted files, and how its inputs are damaged, for `fuzz.py`."""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from laws import train_small
from malicious_pickles import RunsCommand
from mutations import (
    damage_bytes,
    damage_pickle,
    damage_records,
    damage_values,
    is_small,
    plant_gadget,
    random_program,
    saved,
)

from lit_gpt_scratch import inspection
from lit_gpt_scratch.checkpoints.formats import CONFIG, WEIGHTS
from lit_gpt_scratch.cli import export_command as export
from lit_gpt_scratch.cli import main
from lit_gpt_scratch.data import token_cache as cache
from lit_gpt_scratch.data.datamodule import CharDataModule
from lit_gpt_scratch.generation import default_prompt

STEPS, SIZE = 6, 3000
PLACE = Path("runs", "small", "version_0")
AVERAGES = "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"
Rng = random.Random | None  # None: do not damage the input


class Material(NamedTuple):
    """Intact files to damage: a run's folder, its export, and the cache of its corpus."""

    run: Path
    exported: Path
    cache: Path


def make_material(root: Path) -> Material:
    """Train a few steps, and let every reader read an intact input, so that all is imported."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    os.environ["WANDB_MODE"] = "disabled"
    flags = ["--model.net.layers=2", "--model.net.width=16", f"--trainer.max_steps={STEPS}"]
    flags += [f"--data.sample_size={SIZE}", "--trainer.val_check_interval=4", AVERAGES]
    flags += ["--name=small", "--trainer.enable_progress_bar=false"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = train_small(
            root, "--name=small", "--trainer.enable_progress_bar=false", *flags
        ).folder
        export.export(run / "checkpoints" / "last.ckpt", root / "exported")
        material = Material(run, root / "exported", root / "cache")
        for name, (_, prepare) in INPUTS.items():
            folder = root / "intact" / name
            folder.mkdir(parents=True)
            prepare(None, material, folder)
            READERS[name](folder)
    return material


# Checkpoints


def moved(value: Any, old: str, new: str) -> Any:
    """Replace the name of a folder in all texts of nested values."""
    if isinstance(value, dict):
        return {moved(k, old, new): moved(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [moved(part, old, new) for part in value]
    return value.replace(old, new) if isinstance(value, str) else value


def checkpoint(rng: Rng, material: Material, folder: Path) -> str:
    """Write a run's folder with a damaged last checkpoint."""
    run = folder / PLACE
    shutil.copytree(material.run, run, ignore=shutil.ignore_patterns("*.ckpt", "wandb"))
    path = run / "checkpoints" / "last.ckpt"
    path.parent.mkdir(exist_ok=True)
    intact = (material.run / "checkpoints" / "last.ckpt").read_bytes()
    contents = torch.load(io.BytesIO(intact), weights_only=True)
    contents = moved(contents, str(material.run), str(run))
    if rng is None:
        path.write_bytes(saved(contents))
        return "intact"
    (folder / "planted").write_text(
        "class_path: os.system\ninit_args:\n  command: echo run", encoding="utf-8"
    )
    kind = rng.choices(["values", "bytes", "pickle", "program", "records", "gadget"],
                        [55, 12, 10, 10, 5, 8])[0]  # fmt: skip
    if kind == "values":
        damage_values(rng, contents)
    elif kind == "gadget":
        plant_gadget(rng, contents, folder / "marker")
    data = saved(contents) if kind in ("values", "gadget") else intact
    if kind == "bytes":
        data = damage_bytes(rng, intact, rng.choice([intact, intact[5000:], b"\x80\x02}q\0."]))
    elif kind in ("pickle", "program", "records"):
        mutate = {"pickle": damage_pickle, "program": random_program, "records": damage_records}
        data = mutate[kind](rng, intact)
    path.write_bytes(data)
    return kind


def load(folder: Path) -> None:
    """Load it as a notebook does."""
    model = inspection.load(last(folder))
    inspection.next_characters(model, default_prompt(model.tokenizer))


def predict(folder: Path) -> None:
    main(["predict", "--ckpt_path", str(last(folder)), "--max_new_tokens=4"])


def validate(folder: Path) -> None:
    main(["validate", "--ckpt_path", str(last(folder)), "--trainer.accelerator=cpu"])


def resume(folder: Path) -> None:
    """Two more steps, each with its validation, its rows, and its checkpoint."""
    flags = [f"--trainer.max_steps={STEPS + 2}", "--trainer.val_check_interval=1"]
    flags += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", AVERAGES]
    flags += [f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu"]
    flags += ["--model.compile=false"]  # a compiler starts programs and writes to other folders
    main(["fit", "--ckpt_path", str(last(folder)), *flags])


def export_again(folder: Path) -> None:
    export.main(["--ckpt_path", str(last(folder)), "--output", str(folder / "exported_again")])


def last(folder: Path) -> Path:
    return folder / PLACE / "checkpoints" / "last.ckpt"


# Exported folders


def exported(rng: Rng, material: Material, folder: Path) -> str:
    shutil.copytree(material.exported, folder / "exported")
    if rng is None:
        return "intact"
    config = folder / "exported" / CONFIG
    (folder / "planted").write_text(
        "class_path: os.system\ninit_args:\n  command: echo run", encoding="utf-8"
    )
    kind = rng.choice(["values", "values", "bytes", "header"])
    if kind == "values":
        facts = json.loads(config.read_text(encoding="utf-8"))
        damage_values(rng, facts)
        with contextlib.suppress(RecursionError, UnicodeEncodeError, ValueError):
            text = json.dumps(facts, default=str, skipkeys=True) if is_small(facts) else "[" * 9**6
            config.write_text(text, encoding="utf-8")
    else:
        weights = folder / "exported" / WEIGHTS
        file = weights if kind == "header" else rng.choice([config, weights])
        data, start = file.read_bytes(), 1500 if kind == "header" else len(config.read_bytes())
        file.write_bytes(damage_bytes(rng, data[:start], data) + data[start:])
    return kind


def read_exported(folder: Path) -> None:
    model = inspection.load(folder / "exported")
    inspection.next_characters(model, default_prompt(model.tokenizer))
    main(["predict", "--ckpt_path", str(folder / "exported"), "--max_new_tokens=4"])


# Caches of tokens


def tokens(rng: Rng, material: Material, folder: Path) -> str:
    shutil.copytree(material.cache, folder / "cache")
    if rng is None:
        return "intact"
    place = rng.choice(list((folder / "cache").glob("*/tokens/*")))
    file = rng.choice([path for path in place.iterdir() if path.is_file()])
    data = file.read_bytes()
    kind = rng.choice(["bytes", "bytes summed", "values summed"])
    if kind == "values summed":
        array = np.load(place / cache.TOKENS)
        gadget = np.array([RunsCommand(folder / "run")])
        arrays: list[Any] = [
            array[:0], array[:5], array.astype(np.int64), array.astype(">i2"), array - 1,
            array + 250, array.astype(np.float32), array[None], np.array(7), gadget,
            array.astype("U1"), np.array([None] * 9),
        ]  # fmt: skip
        np.save(place / cache.TOKENS, rng.choice(arrays), allow_pickle=True)
        if not rng.randrange(4):
            (place / cache.ALPHABET).write_text(
                rng.choice(["", "a", "ba", "aa", "\0", "é" * 9]), encoding="utf-8"
            )
        if not rng.randrange(3):  # a header with a wrong shape
            content = (place / cache.TOKENS).read_bytes()
            shapes = [b"(10**9,)", b"(99999999999999,)", b"(-5,)", b"((),)", b"(3000, 9)"]
            shape = rng.choice(shapes)
            at = content.find(b"'shape': ") + 9
            damaged = content[:at] + shape.ljust(20) + content[at + 20 :]
            (place / cache.TOKENS).write_bytes(damaged)
    else:
        file.write_bytes(damage_bytes(rng, data, data[100:]))
    if kind.endswith("summed"):
        (place / cache.SUMS).write_text(cache._checksums(place), encoding="utf-8")
    return kind


def read_tokens(folder: Path) -> None:
    """Read a token cache as training does."""
    old = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        gather("sample")
    finally:
        os.environ["XDG_CACHE_HOME"] = old


def gather(corpus: str) -> None:
    """Open a corpus and gather the first batch."""
    data = CharDataModule(corpus, context=8, batch_size=4, sample_size=SIZE)
    data.open()
    batch = data.read_windows(data.train_windows(0))
    assert batch.inputs.max() < len(data.alphabet)
    data.tokenizer.decode(batch.inputs[0])


# Prompts and corpora

PIECES = [
    b"\0", b"\x1b[2J", b"\r\n", b"\n" * 3, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3",
    b"\xf4\x90\x80\x80", "é漢🏳️‍🌈".encode(), b"hello ", b"a", b"ROMEO:\n", b"\x85\x1c",
    b"--help", b"{a: [", b"@/etc/passwd", b"!!python/object/apply:os.system [echo]", b"${HOME}",
]  # fmt: skip


def text(rng: random.Random) -> tuple[str, bytes]:
    """Return a kind of text and its bytes, which may not be UTF-8."""
    kind = rng.choice(["noise", "pieces", "pieces", "torn", "long", "empty"])
    intact = ("The cat sat. é漢🏳️\n" * rng.choice([1, 20, 2000])).encode()
    texts = {
        "noise": rng.randbytes(rng.choice([1, 10, 5000])),
        "pieces": b"".join(rng.choice(PIECES) for _ in range(rng.randint(1, 30))),
        "torn": damage_bytes(rng, intact, intact[1:]),
        # Few lines, because each line is a prompt and generates a text.
        "long": rng.choice([p for p in PIECES if b"\n" not in p]) * rng.choice([9999, 99_999]),
        "empty": rng.choice([b"", b"\xef\xbb\xbf", b"a", b"\n"]),
    }
    return kind, texts[kind]


def prompt(rng: Rng, material: Material, folder: Path) -> str:
    kind, content = text(rng) if rng else ("intact", b"a")
    shutil.copytree(material.exported, folder / "exported")
    (folder / "prompt.txt").write_bytes(content)
    flags = ["--prompt", "--stop", "--prompt_file", "--prompt_file"]
    flag = rng.choice(flags) if rng else "--prompt"
    errors = rng.choice(["surrogateescape", "replace", "ignore"]) if rng else "strict"
    (folder / "flag.json").write_text(json.dumps([flag, errors]), encoding="utf-8")
    return kind


def read_prompt(folder: Path) -> None:
    flag, errors = json.loads((folder / "flag.json").read_text(encoding="utf-8"))
    given = (folder / "prompt.txt").read_bytes().decode("utf-8", errors)
    # The system's limit for one argument.
    value = str(folder / "prompt.txt") if flag == "--prompt_file" else given[:130_000]
    main(
        [
            "predict",
            "--ckpt_path",
            str(folder / "exported"),
            "--max_new_tokens=2",
            f"{flag}={value}",
        ]
    )


def corpus(rng: Rng, _: Material, folder: Path) -> str:
    kind, content = text(rng) if rng else ("intact", b"to be " * 99)
    (folder / "corpus.txt").write_bytes(content)
    return kind


def read_corpus(folder: Path) -> None:
    gather(str(folder / "corpus.txt"))


READERS: dict[str, Callable[[Path], Any]] = {
    "load": load, "predict": predict, "validate": validate, "resume": resume,
    "export": export_again, "folder": read_exported, "tokens": read_tokens, "prompt": read_prompt,
    "corpus": read_corpus,
}  # fmt: skip
# The inputs of a hundred that each reader gets, and the function that writes them.
INPUTS: dict[str, tuple[int, Callable[[Rng, Material, Path], str]]] = {
    "load": (30, checkpoint), "predict": (10, checkpoint), "validate": (6, checkpoint),
    "resume": (14, checkpoint), "export": (5, checkpoint), "folder": (12, exported),
    "tokens": (10, tokens), "prompt": (7, prompt), "corpus": (6, corpus),
}  # fmt: skip
