"""Faults of several processes that use one run or one cache at the same time."""

import signal
import time

from harness import NAME, Kinds, Site, last


def resumed_twice(site: Site) -> str:
    """Resume one run in two processes: one resumes, the other prints an error."""
    site.create_interrupted()
    processes = [site.resume() for _ in range(2)]
    codes = [process.wait() for process in processes]
    assert sorted(codes) == [0, 2], "\n".join(process.output for process in processes)
    outcome = processes[codes.index(2)].expect_error("another process", "already")
    return f"{outcome}, and {site.check_identical()}"


def started_twice(site: Site) -> str:
    """Start two runs with one name and one cache: each gets its own folder."""
    site.create(cached=bool(site.number % 2))
    processes = [site.start() for _ in range(2)]
    for process in processes:
        process.expect_success()
    folders = sorted((site.folder / "runs" / NAME).iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    for folder in folders:
        site.check_identical(folder)
    return "both the same run"


def built_twice(site: Site) -> str:
    """Build one large cache in two processes; for odd numbers, kill one of them."""
    site.setting = "large"
    expected = site.prepared.uninterrupted("large")
    site.create()
    processes = [site.start() for _ in range(2)]
    tokens = site.cache / "lit_gpt_scratch" / "tokens"
    if site.number % 2:
        processes[0].wait_for(lambda: tokens.exists() and [*tokens.iterdir()])
        processes.pop(0).kill(signal.SIGKILL)
    for process in processes:
        process.expect_success()
    site.check_identical()
    [wanted] = expected.cache.glob("lit_gpt_scratch/tokens/*/tokens.npy")
    [found] = site.cache.glob("lit_gpt_scratch/tokens/[!.]*/tokens.npy")
    assert found.read_bytes() == wanted.read_bytes(), "another cache"
    return "the same run" if site.number % 2 else "both the same run"


def resumed_while_stopping(site: Site) -> str:
    """Resume a run while its first process is stopping."""
    site.create(cached=True)
    first = site.start()
    first.wait_for(last(site.run).exists)
    second = site.resume()
    time.sleep(site.rng.uniform(0, 9))
    first.kill(signal.SIGTERM)
    if second.wait() == 2:
        return f"{second.expect_error('another process', 'already')}, then {site.finish()}"
    second.expect_success()
    return site.finish()


def read_while_training(site: Site) -> str:
    """Run `validate` on a checkpoint that training replaces again and again."""
    site.setting = "validating"
    site.create(cached=True)
    process = site.start()
    process.wait_for(last(site.run).exists)
    for _ in range(2):
        site.command("validate", f"--ckpt_path={last(site.run)}").expect_success()
    process.expect_success()
    return site.check_identical()


KINDS: Kinds = {
    "resumed twice at once": (3, resumed_twice),
    "started twice at once": (2, started_twice),
    "cache built twice at once": (2, built_twice),
    "resumed while the first is stopping": (2, resumed_while_stopping),
    "read while training": (1, read_while_training),
}
