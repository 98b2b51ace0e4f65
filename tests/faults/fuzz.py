"""Thousands of spoiled files for everything that reads a stranger's: `make fuzz`.

Each input is a number: it draws a reader, a way to spoil what that reads, and the spoiling itself.
Two processes read one after the other under watch (`watch.py`). A reader may refuse in one line, or
take what is harmless. All else is a finding: a traceback, a hang, a dead process, code that runs, a
file written outside, or too much memory. The input of a finding is kept, to be read again.
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
from readers import DRAWN, READERS, Material, make_material
from tqdm import tqdm
from watch import SECONDS, Forbidden, Watch

from lit_gpt_scratch.errors import InputError

AT_ONCE = 250  # inputs of one process
Readers = dict[str, Callable[[Path], Any]]


class Result(NamedTuple):
    """What a reader made of an input: `refused`, `harmless`, or what it must not do."""

    number: int
    reader: str
    kind: str
    outcome: str
    seconds: float = 0.0  # by the clock


def prepare(number: int, seed: int, material: Material, folder: Path) -> tuple[str, str]:
    """Write an input into a folder. Returns its reader's name and the kind of its spoiling."""
    draw = random.Random(f"{seed} {number}")
    reader = draw.choices([*DRAWN], [share for share, _ in DRAWN.values()])[0]
    folder.mkdir(parents=True)
    kind = DRAWN[reader][1](draw, material, folder)
    (folder / "input.json").write_text(json.dumps({"reader": reader, "kind": kind}))
    return reader, kind


def read(reader: Callable[[Path], Any], folder: Path, watch: Watch, *writable: Path) -> str:
    """Let a reader read a folder's input, with its output caught. Returns the outcome."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    err.reconfigure(errors="backslashreplace")  # as Python has it
    outcome = "harmless"
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            watch.start(folder, *writable)
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
            watch.stop()
    said = err.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    if outcome == "refused" and said and said.count("error: ") != 1 and "error: " in said:
        outcome = f"traceback: said {ascii(said)[:300]}"
    if "Traceback" in said:
        outcome = "traceback: on standard error"
    return watch.seen[0] if watch.seen else outcome


def work(
    numbers: Sequence[int], seed: int, material: Material, readers: Readers, root: Path, pipe: Any
) -> None:
    """Read inputs in this process, and send the result of each."""
    cache = root / f"cache-{numbers[0]}"
    shutil.copytree(material.cache, cache)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["WANDB_MODE"] = "disabled"
    watch = None
    for number in numbers:
        folder = root / str(number)
        reader, kind = prepare(number, seed, material, folder)
        pipe.send((number, reader, kind, "begun"))
        watch = watch or Watch()  # after the first is prepared, and all is imported
        outcome = read(readers[reader], folder, watch, cache)
        pipe.send((number, reader, kind, outcome))
        os.chdir(root)
        if outcome in ("refused", "harmless"):
            shutil.rmtree(folder)
    pipe.send(None)
    os._exit(0)  # nothing of this process' past is to be cleared up


def read_all(
    numbers: Sequence[int], seed: int, material: Material, readers: Readers, root: Path,
    done: Callable[[Result], None],
) -> None:  # fmt: skip
    """Read inputs in processes of their own, one after the other: a dead one is a finding."""
    context = multiprocessing.get_context("fork")
    left = list(numbers)
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(left, seed, material, readers, root, theirs))
        worker.start()
        theirs.close()
        begun: Result | None = None
        since = 0.0
        while True:
            try:
                if not ours.poll(6 * SECONDS):  # of waiting: computing is timed by the watch
                    lost = "hang: not even to be interrupted"
                    break
                message = ours.recv()
            except EOFError:
                worker.join()
                lost = f"dead process: exit code {worker.exitcode}"
                break
            if message is None:
                worker.join()
                return
            begun = Result(*message)
            if begun.outcome == "begun":
                since = time.monotonic()
            else:
                left.remove(begun.number)
                done(begun._replace(seconds=time.monotonic() - since))
        worker.kill()
        worker.join()
        shutil.rmtree(root / f"cache-{numbers[0]}", ignore_errors=True)
        if begun is None or begun.outcome != "begun":
            raise RuntimeError(f"between two inputs, {lost}")
        left.remove(begun.number)
        done(begun._replace(outcome=lost))
        numbers = left


def campaign(
    numbers: Iterable[int], seed: int, material: Material, keep: Path, readers: Readers = READERS,
    processes: int = 2,
) -> list[Result]:  # fmt: skip
    """Read all inputs of these numbers; those of findings are moved to a folder.

    Returns:
        The results, by number.
    """
    numbers = list(numbers)
    parts = [numbers[at : at + AT_ONCE] for at in range(0, len(numbers), AT_ONCE)]
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
                prepare(result.number, seed, material, kept)  # its reader may have changed it
                bar.write(f"{kept}: {result.reader}, {result.kind}: {result.outcome}")

        one = partial(read_all, seed=seed, material=material, readers=readers, root=root, done=done)
        list(pool.map(one, parts))
    bar.close()
    return sorted(results)


def table(results: Sequence[Result]) -> str:
    """A row for each reader and kind of spoiling."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        ends = rows.setdefault((result.reader, result.kind), Counter())
        good = result.outcome in ("refused", "harmless")
        ends[result.outcome if good else "findings"] += 1
    ends = sum(rows.values(), Counter())
    lines = [("reader", "spoiled", "inputs", "refused", "harmless", "findings")]
    for (reader, kind), end in [*sorted(rows.items()), (("all", ""), ends)]:
        counts = (end.total(), end["refused"], end["harmless"], end["findings"])
        lines.append((reader, kind, *map(str, counts)))
    return "\n".join(f"{r:10} {k:10} {n:>7} {a:>8} {b:>9} {f:>9}" for r, k, n, a, b, f in lines)


def main(args: Sequence[str] | None = None) -> None:
    """Spoil and read, from the command line."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=4000, help="how many (default: 4000)")
    parser.add_argument("--seed", type=int, default=1337, help="of them (default: 1337)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="findings' folder")
    parser.add_argument("--replay", type=Path, help="read the input in this folder, unwatched")
    options = parser.parse_args(args)
    if options.replay:
        folder = options.replay.resolve()
        os.chdir(folder)
        READERS[json.loads((folder / "input.json").read_text())["reader"]](folder)
        return
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        material = make_material(Path(temporary))
        numbers = range(options.first, options.first + options.inputs)
        results = campaign(numbers, options.seed, material, options.keep.resolve())
    print(table(results))
    slowest = max(results, key=lambda result: result.seconds)
    print(
        f"slowest: input {slowest.number}, {slowest.reader}, {slowest.seconds:.1f} s by the clock"
    )
    found = [result for result in results if result.outcome not in ("refused", "harmless")]
    if found:
        print(f"{len(found)} findings. Read one again with --replay {options.keep}/SEED-NUMBER")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
