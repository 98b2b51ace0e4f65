"""Ways to damage a file, for `fuzz.py`: its bytes, its pickled program, or its values.

Every function takes a `random.Random` and takes all random numbers from it. The same number thus
always produces the same input.
"""

import contextlib
import io
import math
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from malicious_pickles import GADGETS

Place = tuple[Any, Any]  # a container and one of its keys

# Bytes


def damage_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flip, overwrite, cut off, insert, repeat, or continue as another file; one to four times."""
    for _ in range(rng.randint(1, 4)):
        size = len(data)
        # Half of the places are near an end, because archives have their tables there.
        at = rng.choice([rng.randint(0, size), rng.randint(0, min(size, 4000))])
        at = rng.choice([at, max(0, size - at)])
        length = min(rng.choice([1, 2, 4, 8, 100, 5000]), size - at)
        noise = bytes(rng.choice([0, 255, rng.randrange(256)]) for _ in range(length))
        kind = rng.randrange(6)
        if kind == 0 and length:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + noise + data[at + length :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + noise + data[at:]
        elif kind == 4:
            data = data[:at] + data[at : at + length] * rng.randint(2, 50) + data[at + length :]
        elif kind == 5:
            data = data[:at] + other[rng.randint(0, len(other)) :]
    return data


# Pickled programs


def rezip(data: bytes, edit: Callable[[str, bytes], bytes], **how: Any) -> bytes:
    """Return an archive with edited records and correct checksums."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(output, "w", **how) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return output.getvalue()


def damage_pickle(rng: random.Random, data: bytes) -> bytes:
    """Damage the bytes of an archive's pickle, which are opcodes and their arguments."""
    return rezip(data, lambda name, r: damage_bytes(rng, r, r) if name.endswith(".pkl") else r)


def damage_records(rng: random.Random, data: bytes) -> bytes:
    """Damage a record of an archive that is not its pickle, or compress the archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        chosen = rng.choice([n for n in archive.namelist() if not n.endswith(".pkl")])
    if not rng.randrange(4):
        return rezip(data, lambda _, r: r, compression=zipfile.ZIP_DEFLATED)
    return rezip(data, lambda name, r: damage_bytes(rng, r, data) if name == chosen else r)


NAMES = [
    "os\nsystem", "builtins\neval", "builtins\ngetattr", "builtins\nbytearray", "torch\nload",
    "collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage",
    "torch._utils\n_rebuild_parameter", "torch\nSize", "torch\ndevice", "collections\nCounter",
    "_codecs\nencode", "torch._utils\n_rebuild_sparse_tensor",
    "torch._tensor\n_rebuild_from_type_v2",
    "torch._utils\n_rebuild_meta_tensor_no_storage", "torch.storage\n_load_from_bytes",
    "copyreg\n_reconstructor", "torch.nn.parameter\nParameter", "torch\nTensor",
]  # fmt: skip


def random_opcode(rng: random.Random) -> bytes:
    """Return a random opcode with its argument, mostly one that PyTorch's reader knows."""
    number = rng.choice([0, 1, 2, 5, 255, 65535, 1 << 31])
    text = rng.choice(["storage", "cpu", "0", "state_dict", "x" * 1000]).encode()
    return rng.choice(
        [
            *(bytes([c]) for c in
              b"N\x88\x89](})t\x85\x86\x87aesuRbQ.0210d\x81\x8f\x90\x91\x92\x93\x94"),
            b"K" + bytes([number % 256]), b"M" + struct.pack("<H", number % 65536),
            b"J" + struct.pack("<i", number - (1 << 31)), b"G" + struct.pack(">d", rng.random()),
            b"X" + struct.pack("<I", len(text)) + text, b"X" + struct.pack("<I", number) + text,
            b"\x8a\x08" + bytes(8), b"\x8a\xff" + bytes([255] * 255), b"U\x03abc",
            b"c" + rng.choice(NAMES).encode() + b"\n", b"q" + bytes([number % 8]),
            b"h" + bytes([number % 8]), b"r" + struct.pack("<I", number),
            b"j" + struct.pack("<I", number), b"\x80\x02",
        ]
    )  # fmt: skip


def random_program(rng: random.Random, data: bytes) -> bytes:
    """Return an archive whose pickle is, or contains, a random program, often repeated."""
    piece = b"".join(random_opcode(rng) for _ in range(rng.choice([3, 10, 40, 200])))
    piece *= rng.choice([1, 1, 1, 50, 5000])
    if not rng.randrange(8):  # a key that is slow to hash, or too deep a stack
        piece = rng.choice([b"})" + b"q\0h\0\x86" * 60 + b"Ns", b"})" + b"\x85" * 300_000 + b"Ns"])

    def edit(name: str, record: bytes) -> bytes:
        if not name.endswith(".pkl"):
            return record
        at = rng.choice([2, len(record) - 1, rng.randint(2, len(record))])
        return rng.choice([b"\x80\x02" + piece + b".", record[:at] + piece + record[at:]])

    return rezip(data, edit)


# Values


def places(value: Any) -> Iterator[Place]:
    """Yield every container and key in nested dictionaries and lists."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, part in items:
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def is_small(value: Any) -> bool:
    """Return whether nested values are few after unfolding, as JSON must write them."""
    found, count = [value], 0
    while found and count < 100_000:
        value = found.pop()
        count += 1
        if isinstance(value, dict | list | tuple):
            found += value.values() if isinstance(value, dict) else value
    return not found


def endless() -> list[Any]:
    """Return a list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


def unfolding(make: Callable[[Any], Any], rounds: int) -> Any:
    """Return a value nested `rounds` deep, which may unfold to an enormous size."""
    value: Any = 1
    for _ in range(rounds):
        value = make(value)
    return value


CLASSES = [
    "os.system", "subprocess.Popen", "torch.load", "builtins.eval", "lightning.pytorch.Trainer",
    "lit_gpt_scratch.data.corpus.os.system", "lit_gpt_scratch.training.module.LitCharLM", "planted",
    "lit_gpt_scratch.models.Ensemble", "lit_gpt_scratch.models.Bigram",
    "lit_gpt_scratch.training.AdamW",
    "lit_gpt_scratch.models.GPT", "lit_gpt_scratch.models.MeanAttention",
    "lit_gpt_scratch" + ".a" * 5000, "lit_gpt_scratch.\0", "lit_gpt_scratch.\ud800.x",
]  # fmt: skip
TEXTS = [
    "", "a", "\0", "\ud800", "\x1b[2J\n\n", "x" * 1_000_000, "../../../etc/passwd", "/etc/passwd",
    "http://127.0.0.1:9/x", "https://example.invalid/x", "file:///etc/passwd", "~nobody/x",
    "class_path: os.system", "{class_path: os.system}", "${oc.env:HOME}", "@/etc/passwd",
    "!!python",
    "null", "nan", "1e400", "99999999999999999999", "runs/../../notes.txt", "s3://a/b", "%s{0}",
]  # fmt: skip
UNUSUAL: list[Callable[[random.Random], Any]] = [
    lambda rng: rng.choice([None, True, False, b"bytes", (), {}, [], {1, 2}]),
    lambda rng: rng.choice([0, 1, -1, 2, 3, 7, 64, 1000]),
    lambda rng: rng.choice([10**6, 10**9, 1 << 31, 1 << 53, 1 << 62, 1 << 63, 10**30, 10**5000]),
    lambda rng: -rng.choice([10**6, 1 << 31, 1 << 63, 10**30]),
    lambda rng: rng.choice([0.0, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf]),
    lambda rng: rng.choice(TEXTS),
    lambda rng: {"class_path": rng.choice(CLASSES), "init_args": rng.choice([{}, 1])},
    lambda rng: rng.choice(CLASSES),
    lambda rng: rng.choice([endless(), unfolding(lambda v: [v], 5000), [[[[[1]]]]]]),
    lambda rng: unfolding(lambda v: rng.choice([[v, v], (v, v), {"a": v, "b": v}]), 50),
    lambda rng: {rng.choice([((1, 2), 3), None, 0.5, True, 1 << 70, "x" * 100_000]): 1},
    lambda rng: rng.choice([torch.ones(3), torch.ones(0), torch.tensor(math.nan)]),
    lambda rng: torch.ones(1).expand(rng.choice([2, 1 << 20, 1 << 40])),
    lambda rng: rng.choice(
        [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr(),
         torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool),
         torch.ones(2, 2).T[1:], torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.int8)]
    ),
]  # fmt: skip


def similar(rng: random.Random, value: Any) -> Any:
    """Return a similar value of the same or a related type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 1000, value / 2, 0])
    if isinstance(value, str):
        return rng.choice([value[1:], value + "x", value.upper(), value[::-1], value * 100])
    if isinstance(value, torch.Tensor):
        flat = value.flatten()
        return rng.choice(
            [value.double(), value.half(), value.bfloat16(), value.long(), value * math.nan, flat,
             value.unsqueeze(0), flat[:1], -value, value * 1e30]
        )  # fmt: skip
    if isinstance(value, dict):
        return OrderedDict(value) if rng.randrange(2) else list(value.items())
    return [*value, *value] if isinstance(value, list) else value


def damage_values(rng: random.Random, contents: dict[str, Any]) -> None:
    """Change one to three values: to unusual ones, similar ones, or those of another place."""
    everywhere = list(places(contents))
    # A few large parts have most places. Half the time, choose the part first.
    parts = [list(places(p)) for p in contents.values() if isinstance(p, dict | list) and p]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        within = rng.choice(parts) if rng.randrange(2) else everywhere
        with contextlib.suppress(LookupError):  # an earlier change removed the place
            damage_value(rng, *rng.choice(within), *rng.choice(everywhere))


def damage_value(rng: random.Random, holder: Any, key: Any, other: Any, name: Any) -> None:
    """Change the value at a place; one way is to copy the value of another place."""
    kind = rng.randrange(10)
    if kind < 5:
        holder[key] = rng.choice(UNUSUAL)(rng)
    elif kind < 7:
        holder[key] = similar(rng, holder[key])
    elif kind == 7:
        del holder[key]
    elif kind == 8:
        holder[key] = other[name]
    elif isinstance(holder, dict):
        names = ["x", "class_path", 7, f"{key}x", "_class_path", *TEXTS]
        holder[rng.choice(names)] = holder.pop(key)


def plant_gadget(rng: random.Random, contents: dict[str, Any], marker: Path) -> None:
    """Replace a random value by an object that runs a command when it is unpickled."""
    holder, key = rng.choice(list(places(contents)))
    holder[key] = rng.choice(GADGETS)(marker)


def saved(contents: Any) -> bytes:
    """Return the bytes that `torch.save` writes, or a text if it cannot save the contents."""
    output = io.BytesIO()
    try:
        torch.save(contents, output)
    except (RecursionError, UnicodeEncodeError, ValueError, pickle.PicklingError):
        return b"not to be saved"
    return output.getvalue()
