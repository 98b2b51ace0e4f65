"""Several processes at one thing: one has it and the other is told so, or both are right."""

import signal
import time

from harness import NAME, Kinds, Site, last


def resumed_twice(site: Site) -> str:
    """One goes on, the other is refused."""
    site.make_half()
    processes = [site.resume() for _ in range(2)]
    codes = [process.end() for process in processes]
    assert sorted(codes) == [0, 2], "\n".join(process.said for process in processes)
    said = processes[codes.index(2)].is_refused("another process", "already")
    return f"{said}, and {site.is_right()}"


def started_twice(site: Site) -> str:
    """By one name, with one cache that neither has: two folders."""
    site.make(warm=bool(site.number % 2))
    processes = [site.start() for _ in range(2)]
    for process in processes:
        process.is_done()
    folders = sorted((site.folder / "runs" / NAME).iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    for folder in folders:
        site.is_right(folder)
    return "both the same run"


def built_twice(site: Site) -> str:
    """A cache of tens of megabytes, by two at once; one of them is killed in every other case."""
    site.setting = "large"
    whole = site.prepared.whole("large")
    site.make()
    processes = [site.start() for _ in range(2)]
    tokens = site.cache / "lit_gpt_scratch" / "tokens"
    if site.number % 2:
        processes[0].until(lambda: tokens.exists() and [*tokens.iterdir()])
        processes.pop(0).kill(signal.SIGKILL)
    for process in processes:
        process.is_done()
    site.is_right()
    [there] = whole.cache.glob("lit_gpt_scratch/tokens/*/tokens.npy")
    [found] = site.cache.glob("lit_gpt_scratch/tokens/[!.]*/tokens.npy")
    assert found.read_bytes() == there.read_bytes(), "another cache"
    return "the same run" if site.number % 2 else "both the same run"


def resumed_while_stopping(site: Site) -> str:
    """At the moment when the first is asked to stop."""
    site.make(warm=True)
    first = site.start()
    first.until(last(site.run).exists)
    second = site.resume()
    time.sleep(site.draw.uniform(0, 9))
    first.kill(signal.SIGTERM)
    if second.end() == 2:
        return f"{second.is_refused('another process', 'already')}, then {site.finish()}"
    second.is_done()
    return site.finish()


def read_while_training(site: Site) -> str:
    """`validate` reads a checkpoint that is being replaced all the time."""
    site.setting = "validating"
    site.make(warm=True)
    process = site.start()
    process.until(last(site.run).exists)
    for _ in range(2):
        site.call("validate", f"--ckpt_path={last(site.run)}").is_done()
    process.is_done()
    return site.is_right()


KINDS: Kinds = {
    "resumed twice at once": (3, resumed_twice),
    "started twice at once": (2, started_twice),
    "cache built twice at once": (2, built_twice),
    "resumed while the first is stopping": (2, resumed_while_stopping),
    "read while training": (1, read_while_training),
}
