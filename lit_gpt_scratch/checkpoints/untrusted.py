"""Whether a file is plain data and tensors, told before and after PyTorch reads it.

`torch.load(weights_only=True)` runs no code. What strangers' files can do all the same is to take
all memory, or all time, or the process: a record packed a thousandfold, a tensor of a single
number shown as a billion, a list that holds itself, a key of tuples in tuples that Python hashes
until its stack is full. And PyTorch never asks whether the bytes are those that were written.
"""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

# The opcodes of `pickletools` in what PyTorch writes of plain data: those that make a value, and
# those that fill one.
VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "GLOBAL", "BINPERSID", "REDUCE", "PROTO", "STOP",
}  # fmt: skip
FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
KEYS = {"BINUNICODE", "BININT", "BININT1", "BININT2"}  # quick to hash, however many
ORDERED, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
CALLS = {TENSOR: "TUPLE", ORDERED: "EMPTY_TUPLE"}  # and what their arguments are in
KINDS = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
STORAGES = {f"torch {kind}Storage" for kind in KINDS.split()}

MOST_PICKLED = 1 << 24  # bytes: all that is not numbers in tensors
MOST_VALUES, MOST_DEPTH = 1 << 20, 64


def require_plain_archive(path: Path) -> None:
    """Refuse a file that is not what `torch.save` makes of plain data, before it is read.

    Raises:
        pickle.UnpicklingError: It holds more than plain data, or is no archive at all.
        ValueError: It is damaged, or made to be larger than it looks.
        zipfile.BadZipFile: It is damaged.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        raise pickle.UnpicklingError("not an archive")
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(r.compress_type != zipfile.ZIP_STORED or r.flag_bits & 1 for r in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("records that are packed, or overlap")
        if len({record.filename.lower() for record in records}) < len(records):
            raise ValueError("two records of one name")
        if damaged := archive.testzip():
            raise ValueError(f"record {damaged} is damaged")
    # By the reader that `torch.load` has, so that it is the same record.
    reader = torch._C.PyTorchFileReader(str(path))
    if "data.pkl" not in reader.get_all_records():
        raise pickle.UnpicklingError("TorchScript")
    pickled = reader.get_record("data.pkl")
    if len(pickled) > MOST_PICKLED:
        raise ValueError("absurdly large")
    _require_plain_pickle(pickled)


def _require_plain_pickle(pickled: bytes) -> None:
    """Follow a pickle's program without running it: what opcode made each thing on its stack."""
    stack: list[Any] = []
    outer: list[list[Any]] = []  # what was on it at each mark
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        name, taken = opcode.name, len(opcode.stack_before)
        if name == "MARK":
            outer.append(stack)
            stack = []
        elif "GET" in name:
            stack.append(memo[argument])
        elif "PUT" in name:
            memo[argument] = stack[-1]
        elif count > MOST_VALUES or name not in VALUES | FILLS:
            raise pickle.UnpicklingError(f"{name} is not plain data, or there is too much")
        else:
            if pickletools.stackslice in opcode.stack_before:
                items, stack = stack, outer.pop()
            else:
                items = stack[len(stack) - taken :]
                del stack[len(stack) - taken :]
            keys = {"SETITEM": items[1:2], "SETITEMS": items[::2]}.get(name, [])
            allowed = {
                "GLOBAL": argument in CALLS or argument in STORAGES,
                "REDUCE": CALLS.get(items[0]) == items[1] if name == "REDUCE" else True,
                "BUILD": items[:2] == [f"{ORDERED}()", "EMPTY_DICT"],
            }
            if not allowed.get(name, True) or not KEYS.issuperset(keys):
                raise pickle.UnpicklingError(f"{name} of {argument or items[:2]}")
            if name in ("APPEND", "SETITEM", "BUILD"):
                stack.append(items[0])
            elif name in VALUES:
                made = {"GLOBAL": argument, "REDUCE": f"{items[0]}()" if items else ""}
                stack.append(made.get(name, name))


def require_plain(value: Any, size: int) -> None:
    """Refuse what is no data, or unfolds to more than a file of that many bytes can hold.

    Raises:
        ValueError: It names what.
    """
    found, count = [(value, 0)], 0
    while found:  # not by recursion, which deep nesting would end
        value, depth = found.pop()
        count += 1
        if depth > MOST_DEPTH or count + len(found) > MOST_VALUES:
            raise ValueError("parts without end, or too many of them")
        if type(value) in (dict, OrderedDict):
            if not {"_metadata"}.issuperset(getattr(value, "__dict__", ())):
                raise ValueError("a dictionary with attributes")
            found += ((part, depth + 1) for item in value.items() for part in item)
        elif type(value) in (list, tuple):
            found += ((part, depth + 1) for part in value)
        elif type(value) is torch.Tensor:
            size -= value.numel()
            if value.layout != torch.strided or value.device.type != "cpu" or size < 0:
                raise ValueError("tensors where none belong, or that its bytes cannot fill")
        elif type(value) is int:
            if not -(1 << 63) <= value < 1 << 63:
                raise ValueError("a number of more than 64 bits")
        elif value is not None and type(value) not in (bool, float, str):
            raise ValueError(f"a {type(value).__name__}, which is no plain data")
