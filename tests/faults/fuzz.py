"""Read thousands of damaged files with all code that reads untrusted files: `make fuzz`.

Each input has a number, which decides the reader and the damage. Two processes read inputs one
after the other, under a `Monitor`. A reader may report an error in one line (refused), or read the
file without harm (harmless). Anything else is a finding: a traceback, a hang, a dead process, code
that runs, a file written outside the folder, or too much memory. The inputs of findings are kept.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from monitor import SECONDS, Forbidden, Monitor
from readers import INPUTS, READERS, Material, make_material
from tqdm import tqdm

from lit_gpt_scratch.errors import InputError

BATCH = 250  # inputs of one process
Readers = dict[str, Callable[[Path], Any]]


class Result(NamedTuple):
    """The outcome of an input: `refused`, `harmless`, or the forbidden action."""

    number: int
    reader: str
    kind: str
    outcome: str
    seconds: float = 0.0  # of wall-clock time


def prepare(number: int, seed: int, material: Material, folder: Path) -> tuple[str, str]:
    """Write an input into a folder, and return its reader's name and the kind of damage."""
    rng = random.Random(f"{seed} {number}")
    reader = rng.choices([*INPUTS], [share for share, _ in INPUTS.values()])[0]
    folder.mkdir(parents=True)
    kind = INPUTS[reader][1](rng, material, folder)
    (folder / "input.json").write_text(
        json.dumps({"reader": reader, "kind": kind}), encoding="utf-8"
    )
    return reader, kind


def read(reader: Callable[[Path], Any], folder: Path, monitor: Monitor, *writable: Path) -> str:
    """Read a folder's input, capture the output, and return the outcome."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    err.reconfigure(errors="backslashreplace")  # like Python's standard error
    outcome = "harmless"
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            monitor.start(folder, *writable)
            reader(folder)
        except InputError as error:
            outcome = "refused" if "\n" not in str(error).strip() else "traceback: several lines"
        except SystemExit as stop:
            outcome = "refused" if stop.code == 2 else f"traceback: exit {stop.code}"
        except Forbidden:
            outcome = "forbidden"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}"
            outcome = f"traceback: {ascii(text)[1:300]}"
        finally:
            monitor.stop()
    output = err.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    if outcome == "refused" and output.count("error: ") > 1:
        outcome = f"traceback: printed {ascii(output)[:300]}"
    if "Traceback" in output:
        outcome = "traceback: on standard error"
    return monitor.findings[0] if monitor.findings else outcome


def work(
    numbers: Sequence[int], seed: int, material: Material, readers: Readers, root: Path, pipe: Any
) -> None:
    """Read inputs in this process and send the result of each through a pipe."""
    cache = root / f"cache-{numbers[0]}"
    shutil.copytree(material.cache, cache)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["WANDB_MODE"] = "disabled"
    monitor = None
    for number in numbers:
        folder = root / str(number)
        reader, kind = prepare(number, seed, material, folder)
        pipe.send((number, reader, kind, "started"))
        monitor = monitor or Monitor()  # only now, when all modules are imported
        outcome = read(readers[reader], folder, monitor, cache)
        pipe.send((number, reader, kind, outcome))
        os.chdir(root)
        if outcome in ("refused", "harmless"):
            shutil.rmtree(folder)
    pipe.send(None)
    os._exit(0)  # skip the clean-up of the parent's state


def read_all(
    numbers: Sequence[int], seed: int, material: Material, readers: Readers, root: Path,
    done: Callable[[Result], None],
) -> None:  # fmt: skip
    """Read inputs in child processes, one at a time; a child that dies is a finding."""
    context = multiprocessing.get_context("fork")
    left = list(numbers)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(left, seed, material, readers, root, sender))
        worker.start()
        sender.close()
        current: Result | None = None
        start = 0.0
        while True:
            try:
                if not receiver.poll(6 * SECONDS):  # of waiting: the monitor times computing
                    lost = "hang: the process cannot be interrupted"
                    break
                message = receiver.recv()
            except EOFError:
                worker.join()
                lost = f"dead process: exit code {worker.exitcode}"
                break
            if message is None:
                worker.join()
                return
            current = Result(*message)
            if current.outcome == "started":
                start = time.monotonic()
            else:
                left.remove(current.number)
                done(current._replace(seconds=time.monotonic() - start))
        worker.kill()
        worker.join()
        shutil.rmtree(root / f"cache-{numbers[0]}", ignore_errors=True)
        if current is None or current.outcome != "started":
            raise RuntimeError(f"between two inputs, {lost}")
        left.remove(current.number)
        done(current._replace(outcome=lost))
        numbers = left


def campaign(
    numbers: Iterable[int], seed: int, material: Material, keep: Path, readers: Readers = READERS,
    processes: int = 2,
) -> list[Result]:  # fmt: skip
    """Read the inputs of these numbers, and keep those of findings in a folder.

    Returns:
        The results, sorted by number.
    """
    numbers = list(numbers)
    parts = [numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)]
    results: list[Result] = []
    bar = tqdm(total=len(numbers), desc="inputs", unit="input", smoothing=0.05)

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(processes) as pool:
        root = Path(temporary)

        def done(result: Result) -> None:
            results.append(result)
            bar.update()
            if result.outcome not in ("refused", "harmless"):
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{seed}-{result.number}"
                shutil.rmtree(kept, ignore_errors=True)
                # Write it again: its reader may have changed it.
                prepare(result.number, seed, material, kept)
                bar.write(f"{kept}: {result.reader}, {result.kind}: {result.outcome}")

        one = partial(read_all, seed=seed, material=material, readers=readers, root=root, done=done)
        list(pool.map(one, parts))
    bar.close()
    return sorted(results)


def table(results: Sequence[Result]) -> str:
    """Return a table with a row for each reader and kind of damage."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        ends = rows.setdefault((result.reader, result.kind), Counter())
        good = result.outcome in ("refused", "harmless")
        ends[result.outcome if good else "findings"] += 1
    ends = sum(rows.values(), Counter())
    lines = [("reader", "damage", "inputs", "refused", "harmless", "findings")]
    for (reader, kind), end in [*sorted(rows.items()), (("all", ""), ends)]:
        counts = (end.total(), end["refused"], end["harmless"], end["findings"])
        lines.append((reader, kind, *map(str, counts)))
    return "\n".join(f"{r:10} {k:10} {n:>7} {a:>8} {b:>9} {f:>9}" for r, k, n, a, b, f in lines)


def main(args: Sequence[str] | None = None) -> None:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=4000, help="number of inputs (default: 4000)")
    parser.add_argument("--seed", type=int, default=1337, help="default: 1337")
    parser.add_argument("--first", type=int, default=0, help="first number (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder of findings")
    parser.add_argument("--replay", type=Path, help="read this folder's input, without a monitor")
    options = parser.parse_args(args)
    if options.replay:
        folder = options.replay.resolve()
        os.chdir(folder)
        READERS[json.loads((folder / "input.json").read_text(encoding="utf-8"))["reader"]](folder)
        return
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        material = make_material(Path(temporary))
        numbers = range(options.first, options.first + options.inputs)
        results = campaign(numbers, options.seed, material, options.keep.resolve())
    print(table(results))
    slowest = max(results, key=lambda result: result.seconds)
    print(f"slowest: input {slowest.number}, {slowest.reader}, {slowest.seconds:.1f} s")
    found = [result for result in results if result.outcome not in ("refused", "harmless")]
    if found:
        print(f"{len(found)} findings. Read one again: --replay {options.keep}/SEED-NUMBER")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
