"""Break training runs in many ways and check how each ends: `make faults`.

Every fault uses real processes of the command line, at random moments that depend on a seed. It
must end with the result of an uninterrupted run, to the last bit, or with one error line and exit
code 2. The campaign exits with code 1 if a fault ends in another way.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import concurrency
import damage
import disks
import interruptions
import repeated_kills
from harness import Kinds, Prepared, Site

KILLS = "one run killed 20 times"
Outcomes = list[tuple[str, str]]  # kind and outcome, of each fault


def kinds() -> Kinds:
    """Return all kinds of faults that this machine can run."""
    mounted = disks.MOUNTED if disks.can_mount() else {}
    return interruptions.KINDS | disks.KINDS | mounted | damage.KINDS | concurrency.KINDS


def run_fault(prepared: Prepared, kind: str, number: int) -> str:
    """Run one fault and return its outcome."""
    site = Site(prepared, kind, number)
    try:
        return kinds()[kind][1](site)
    except Exception as error:  # the other faults still run
        return f"BAD ({type(error).__name__}): {error}"


def run_repeated_kills(prepared: Prepared) -> Outcomes:
    """Run `repeated_kills.py` with its default settings."""
    try:
        seen = repeated_kills.campaign(20, 1500, prepared.seed, prepared.folder / "kills")
    except Exception as error:
        return [(KILLS, f"BAD ({type(error).__name__}): {error}")]
    return [(KILLS, "the same run")] * sum(seen.values())


def campaign(prepared: Prepared, faults: Sequence[tuple[str, int]], workers: int) -> Outcomes:
    """Run the given kinds and numbers of faults, `workers` at a time."""
    outcomes: Outcomes = []
    with ThreadPoolExecutor(workers) as pool:
        tasks: dict[object, Callable[[], object]] = {}
        for kind, number in faults:
            if kind == KILLS:
                future = pool.submit(run_repeated_kills, prepared)
            else:
                future = pool.submit(lambda k=kind, n=number: [(k, run_fault(prepared, k, n))])
            tasks[future] = future.result
        for future in tqdm(as_completed(tasks), total=len(tasks), desc="faults", unit="fault"):
            for kind, outcome in future.result():
                outcomes.append((kind, outcome))
                if outcome.startswith("BAD"):
                    tqdm.write(f"\n{kind}: {outcome}", file=sys.stderr)
    return outcomes


def table(outcomes: Outcomes) -> str:
    """Return kinds, counts and outcomes as a Markdown table."""
    lines = ["| kind | count | outcome |", "| --- | ---: | --- |"]
    for (kind, outcome), count in Counter(outcomes).items():
        lines.append(f"| {kind} | {count} | {' '.join(outcome.split())[:120]} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1337, help="default: 1337")
    parser.add_argument("--only", nargs="+", default=[""], help="kinds that contain one of these")
    parser.add_argument("--number", type=int, help="run only this number of each kind")
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="print kinds and counts, and exit")
    options = parser.parse_args(args)
    counts = {KILLS: 1} | {kind: count for kind, (count, _) in kinds().items()}
    wanted = {k: n for k, n in counts.items() if any(word in k for word in options.only)}
    if options.list:
        print("\n".join(f"{count:4} {kind}" for kind, count in wanted.items()))
        return
    numbers = [(kind, i) for kind, count in wanted.items() for i in range(count)]
    faults = [(kind, i) for kind, i in numbers if options.number in (None, i)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = campaign(Prepared(Path(folder), options.seed), faults, options.workers)
    order = [kind for kind, _ in faults]
    outcomes.sort(key=lambda outcome: order.index(outcome[0]))
    bad = [(kind, outcome) for kind, outcome in outcomes if outcome.startswith("BAD")]
    print(table(outcomes))
    minutes = (time.monotonic() - start) / 60
    print(f"\n{len(outcomes)} faults, {len(bad)} bad, seed {options.seed}, {minutes:.0f} minutes")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
