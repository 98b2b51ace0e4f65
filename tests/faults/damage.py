"""Files that are truncated, flipped in one bit, torn, changed or deleted."""

import os
import signal
import time
import zipfile
from pathlib import Path

from harness import Kinds, Site, last, same, state

BREAKS = ("truncated", "flipped", "deleted")


def flip(path: Path, place: int, bit: int = 0) -> None:
    """One bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1 << bit]))


def damage(site: Site, path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "truncated":
        os.truncate(path, site.draw.randrange(size))
    elif how == "flipped":
        flip(path, site.draw.randrange(size), site.draw.randrange(8))
    else:
        path.unlink()


# The token cache


def cached(site: Site, name: str) -> Path:
    [path] = site.cache.glob(f"lit_gpt_scratch/tokens/*/{name}")
    return path


def cache_before(site: Site) -> str:
    """A run is started, or goes on, with what is left of its cache."""
    name = site.draw.choice(["tokens.npy", "tokens.npy", "alphabet.txt"])
    if site.draw.random() < 0.5:
        site.make(warm=True)
    else:
        site.make_half()
    damage(site, cached(site, name), BREAKS[site.number % 3])
    return site.finish()


def cache_while_training(site: Site) -> str:
    """What a run has read does not change under it."""
    site.make(warm=True)
    process = site.start()
    process.until(site.training())
    time.sleep(site.draw.uniform(0, 1))
    tokens = cached(site, "tokens.npy")
    if BREAKS[site.number % 3] == "flipped":  # many, so that one at least is read again
        text = tokens.read_bytes()
        with tokens.open("r+b") as file:  # in place: a run may have it mapped
            file.write(text[:128] + bytes(byte ^ 1 for byte in text[128:]))
    else:
        damage(site, tokens, BREAKS[site.number % 3])
    process.is_done()
    return site.is_right()


# Checkpoints


def places(path: Path) -> dict[str, range]:
    """The parts of a checkpoint's file that are damaged in ways of their own."""
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        directory = archive.start_dir
    content = path.read_bytes()

    def data(info: zipfile.ZipInfo) -> range:
        header = content[info.header_offset :]
        begin = (
            30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        return range(info.header_offset + begin, info.header_offset + begin + info.file_size)

    pickled = next(info for info in files if info.filename.endswith("data.pkl"))
    tensors = max(files, key=lambda info: info.file_size * ("/data/" in info.filename))
    return {
        "header": range(4),
        "pickle": data(pickled),
        "tensor": data(tensors),
        "directory": range(directory, directory + 40),
        "end": range(len(content) - 22, len(content) - 1),
    }


def checkpoint(site: Site) -> str:
    """One line, or, where the bit means nothing, the same run; the other checkpoint goes on."""
    site.make_half()
    path = last(site.run)
    found = places(path)
    place = [*found][site.number // 2 % len(found)]
    where = site.draw.choice(found[place])
    if site.number % 2:
        os.truncate(path, where)
    else:
        flip(path, where, site.draw.randrange(8))
    process = site.resume()
    if process.end() == 0:
        return site.is_right()
    said = process.is_refused("damaged", "refused", "was not written by")
    if site.number < 2 * len(found) and site.number % 3:
        return said
    site.resume(checkpoint="best.ckpt").is_done()
    return f"{said}, then {site.is_right()}"


# What else is in a run's folder


def table_torn(site: Site) -> str:
    """By a process that was killed while it logged what came after its checkpoint."""
    site.make_half()
    for name in ("metrics.csv", "samples.csv", "symbols.csv"):
        with (site.run / name).open("a") as file:
            torn = f'{site.step() + 14},"a\nquo'
            file.write(f'{site.step() + 7},1.5,"a\nb"\n' + torn[: site.draw.randrange(len(torn))])
    return site.finish()


def table_lost(site: Site) -> str:
    """Rows of before the checkpoint cannot come back: this is said, and the weights are right."""
    site.make_half()
    path = site.run / site.draw.choice(["metrics.csv", "samples.csv"])
    if site.number % 2:
        path.unlink()
    else:
        os.truncate(path, site.draw.randrange(path.stat().st_size - 1))
    process = site.resume()
    process.is_done()
    lines = [line for line in process.said.splitlines() if line.startswith("Notice:")]
    assert len(lines) == 1, process.said
    assert path.name in lines[0], lines[0]
    whole = site.prepared.whole("plain").run
    assert same(state(site.run), state(whole)), "another result"
    return "one line, the same weights"


def config_lost(site: Site) -> str:
    """One line; with the flags it was begun with, it goes on in its folder all the same."""
    site.make_half()
    config = site.run / "config.yaml"
    if site.number % 2:
        config.unlink()
    else:
        os.truncate(config, site.draw.randrange(config.stat().st_size - 1))
    said = site.resume().is_refused("config")
    site.start(f"--ckpt_path={last(site.run)}").is_done()
    assert site.run.name == "version_0", "another folder"
    return f"{said}, then {site.is_right()}"


# The corpus


def corpus(site: Site) -> str:
    """Changed or deleted between stop and going on; then put back."""
    site.make()
    text = site.folder / "text.txt"
    text.write_bytes(site.prepared.text())
    site.flags = [f"--data.corpus={text}"]
    process = site.start()
    process.until(last(site.run).exists)
    process.kill(signal.SIGTERM)
    damage(site, text, BREAKS[site.number % 3])
    said = site.resume().is_refused("sha256", "no such file")
    text.write_bytes(site.prepared.text())
    return f"{said}, then {site.finish()}"


def corpus_while_training(site: Site) -> str:
    """What a run has read does not change under it; what it says of it at the end neither."""
    site.make()
    text = site.folder / "text.txt"
    text.write_bytes(site.prepared.text())
    process = site.start(f"--data.corpus={text}")
    process.until(site.training())
    damage(site, text, BREAKS[site.number % 3])
    process.is_done()
    return site.is_right()


KINDS: Kinds = {
    "cache damaged before a start": (6, cache_before),
    "cache damaged while training": (3, cache_while_training),
    "checkpoint damaged": (10, checkpoint),
    "table torn after the checkpoint": (2, table_torn),
    "table lost before the checkpoint": (3, table_lost),
    "config.yaml lost": (2, config_lost),
    "corpus changed between stop and resume": (3, corpus),
    "corpus changed while training": (1, corpus_while_training),
}
