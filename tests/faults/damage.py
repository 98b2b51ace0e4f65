"""Faults of files: truncated, one bit flipped, incomplete, changed or deleted."""

import os
import signal
import time
import zipfile
from pathlib import Path

from harness import Kinds, Site, last, same, state

DAMAGES = ("truncated", "flipped", "deleted")


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1 << bit]))


def damage(site: Site, path: Path, how: str) -> None:
    """Damage a file in one of the ways of DAMAGES, at a random place."""
    size = path.stat().st_size
    if how == "truncated":
        os.truncate(path, site.rng.randrange(size))
    elif how == "flipped":
        flip(path, site.rng.randrange(size), site.rng.randrange(8))
    else:
        path.unlink()


# The token cache


def cached(site: Site, name: str) -> Path:
    """Return a file of the site's token cache."""
    [path] = site.cache.glob(f"lit_gpt_scratch/tokens/*/{name}")
    return path


def cache_before(site: Site) -> str:
    """Start or resume a run with a damaged cache."""
    name = site.rng.choice(["tokens.npy", "tokens.npy", "alphabet.txt"])
    if site.rng.random() < 0.5:
        site.create(cached=True)
    else:
        site.create_interrupted()
    damage(site, cached(site, name), DAMAGES[site.number % 3])
    return site.finish()


def cache_while_training(site: Site) -> str:
    """Damage the cache of a running process, which must not be affected."""
    site.create(cached=True)
    process = site.start()
    process.wait_for(site.new_rows())
    time.sleep(site.rng.uniform(0, 1))
    tokens = cached(site, "tokens.npy")
    if DAMAGES[site.number % 3] == "flipped":  # flip many bits, so that the run reads one again
        text = tokens.read_bytes()
        with tokens.open("r+b") as file:  # in place: the run may have mapped the file
            file.write(text[:128] + bytes(byte ^ 1 for byte in text[128:]))
    else:
        damage(site, tokens, DAMAGES[site.number % 3])
    process.expect_success()
    return site.check_identical()


# Checkpoints


def places(path: Path) -> dict[str, range]:
    """Return the byte ranges of the parts of a checkpoint's zip archive."""
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
    """Damage last.ckpt: expect an error, or the same result if the bit has no meaning.

    For some numbers, best.ckpt then resumes the run.
    """
    site.create_interrupted()
    path = last(site.run)
    parts = places(path)
    part = [*parts][site.number // 2 % len(parts)]
    offset = site.rng.choice(parts[part])
    if site.number % 2:
        os.truncate(path, offset)
    else:
        flip(path, offset, site.rng.randrange(8))
    process = site.resume()
    if process.wait() == 0:
        return site.check_identical()
    outcome = process.expect_error("damaged", "refused", "was not written by")
    if site.number < 2 * len(parts) and site.number % 3:
        return outcome
    site.resume(checkpoint="best.ckpt").expect_success()
    return f"{outcome}, then {site.check_identical()}"


# Other files of a run's folder


def table_torn(site: Site) -> str:
    """Append rows and half a row after the checkpoint, like a process that is killed."""
    site.create_interrupted()
    for name in ("metrics.csv", "samples.csv", "symbols.csv"):
        with (site.run / name).open("a", encoding="utf-8") as file:
            torn = f'{site.step() + 14},"a\nquo'
            file.write(f'{site.step() + 7},1.5,"a\nb"\n' + torn[: site.rng.randrange(len(torn))])
    return site.finish()


def table_lost(site: Site) -> str:
    """Remove rows before the checkpoint: one notice names the table; the weights are right."""
    site.create_interrupted()
    path = site.run / site.rng.choice(["metrics.csv", "samples.csv"])
    if site.number % 2:
        path.unlink()
    else:
        os.truncate(path, site.rng.randrange(path.stat().st_size - 1))
    process = site.resume()
    process.expect_success()
    lines = [line for line in process.output.splitlines() if line.startswith("Notice:")]
    assert len(lines) == 1, process.output
    assert path.name in lines[0], lines[0]
    expected = site.prepared.uninterrupted("plain").run
    assert same(state(site.run), state(expected)), "another result"
    return "one line, the same weights"


def config_lost(site: Site) -> str:
    """Remove or truncate config.yaml: an error; the first start's flags resume the run."""
    site.create_interrupted()
    config = site.run / "config.yaml"
    if site.number % 2:
        config.unlink()
    else:
        os.truncate(config, site.rng.randrange(config.stat().st_size - 1))
    outcome = site.resume().expect_error("config")
    site.start(f"--ckpt_path={last(site.run)}").expect_success()
    assert site.run.name == "version_0", "another folder"
    return f"{outcome}, then {site.check_identical()}"


# The corpus


def corpus(site: Site) -> str:
    """Change or delete the corpus while the run is stopped, and then restore it."""
    site.create()
    text = site.folder / "text.txt"
    text.write_bytes(site.prepared.text())
    site.flags = [f"--data.corpus={text}"]
    process = site.start()
    process.wait_for(last(site.run).exists)
    process.kill(signal.SIGTERM)
    damage(site, text, DAMAGES[site.number % 3])
    outcome = site.resume().expect_error("sha256", "no such file")
    text.write_bytes(site.prepared.text())
    return f"{outcome}, then {site.finish()}"


def corpus_while_training(site: Site) -> str:
    """Damage the corpus of a running process, which must not be affected."""
    site.create()
    text = site.folder / "text.txt"
    text.write_bytes(site.prepared.text())
    process = site.start(f"--data.corpus={text}")
    process.wait_for(site.new_rows())
    damage(site, text, DAMAGES[site.number % 3])
    process.expect_success()
    return site.check_identical()


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
