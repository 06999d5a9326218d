"""The objects in a file of torch.save, built without importing or calling anything that the file names.

torch.save writes objects as a pickle, a list of instructions for a small machine. This is that machine, with the instructions and
the names that occur in files of the two known implementations; all others are refused. Each instruction takes little time and
memory, whatever came before it: none copies, hashes or compares anything large that is there already. So the limits on the number
of instructions and bytes bound the time and memory of the whole, without a clock.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import PerfusionError
from .safe_files import MAX_DIMENSIONS, require, shown
from .torch_archive import BROKEN, Archive

CODE = "it contains more than plain tensors and text, and the rest could run code, so it was not opened"
TOO_LONG = "its pickle is much longer than that of any concept"
MAX_PICKLE = 2**20
MAX_STEPS = 100_000
"""Limits on the bytes and the instructions of a pickle. A checkpoint of ChenDarYen's has some 10,000, most in its configuration."""
LONGEST_NAME, LONGEST_KEY = 100, 1000
"""Limits on the characters of a module, a class or a storage's name, and of a dictionary's key."""
LARGEST_KEY = 2**31
"""Limit on an integer as a key; larger ones could be chosen so that all of them collide in a dictionary."""

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Float": torch.float32,
        "Double": torch.float64,
        "Bool": torch.bool,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "Short": torch.int16,
        "Int": torch.int32,
        "Long": torch.int64,
    }.items()
}
TENSORS = {"torch._utils._rebuild_tensor": 4, "torch._utils._rebuild_tensor_v2": 6}
"""Names of the makers of tensors -> how many arguments they take."""
PARAMETER, ORDERED = "torch._utils._rebuild_parameter", "collections.OrderedDict"
OPAQUE = {
    "torch.nn.modules.container.ParameterDict",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "collections.defaultdict",
    "typing.Any",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "long", "set")),
}
"""Classes in ChenDarYen's checkpoints whose objects do not matter, except, for some, their state."""


@dataclass(frozen=True)
class Name:
    """A name that may occur in a file; nothing is imported for it."""

    full: str


ALLOWED = {name: Name(name) for name in (*STORAGES, *TENSORS, PARAMETER, ORDERED, *OPAQUE)}


@dataclass(frozen=True)
class Storage:
    """The numbers of an entry, [n]."""

    numbers: Tensor


class Opaque:
    """An object of one of the OPAQUE classes: `state` is whatever the file gives it as state; its items are dropped."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


PROTOCOL = b"\x80\x02"
CONSTANTS = {"N": None, "\x88": True, "\x89": False}
EMPTY = {"}": dict, "]": list, ")": tuple}
NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
MEMO = {"q": "<B", "r": "<I", "h": "<B", "j": "<I"}
TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}


def read(archive: Archive, path: Path) -> Any:
    """Return the object in an archive: dictionaries, lists, tuples, numbers, texts, None, `Opaque`, and tensors.

    The tensors are views of the entries, on the CPU; with strides of 0 they can claim any size. `path` names the file in errors.

    Raises:
        PerfusionError: the pickle is damaged or too long, or contains anything else.
        OSError: the file cannot be read.
    """
    require(archive.sizes["data.pkl"] <= MAX_PICKLE, path, TOO_LONG)
    order = archive.sizes.get("byteorder", 0)
    require(order == 0 or (order == len("little") and archive.read("byteorder") == b"little"), path, BROKEN)
    try:
        return _Machine(archive, path).run()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, UnicodeError, struct.error):
        # Without its cause, which can quote the file, and which the host prints unescaped.
        raise PerfusionError(f"{shown(path)} cannot be used: {BROKEN}.") from None


class _Machine:
    """The state of the machine: the instructions and the position in them, a stack of objects, and objects kept by number."""

    def __init__(self, archive: Archive, path: Path) -> None:
        self._archive, self._path = archive, path
        self._content, self._at = bytes(archive.read("data.pkl")), 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Carry out all instructions and return the object that they make."""
        self._require(self._take(len(PROTOCOL)) == PROTOCOL)
        for _ in range(MAX_STEPS):
            code = chr(self._take(1)[0])
            if code == ".":
                self._require(self._at == len(self._content) and len(self._stack) == 1 and not self._marks)
                return self._stack[0]
            self._step(code)
        raise PerfusionError(f"{shown(self._path)} cannot be used: {TOO_LONG}.")

    def _step(self, code: str) -> None:
        """Carry out one instruction."""
        stack = self._stack
        match code:
            case "h" | "j":
                stack.append(self._memo[self._number(MEMO[code])])
            case "q" | "r":
                self._memo[self._number(MEMO[code])] = stack[-1]
            case "X":
                stack.append(self._take(self._number("<I")).decode())
            case "K" | "M" | "J" | "G":
                stack.append(self._number(NUMBERS[code]))
            case "\x8a":
                stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case "N" | "\x88" | "\x89":
                stack.append(CONSTANTS[code])
            case "}" | "]" | ")":
                stack.append(EMPTY[code]())
            case "(":
                self._marks.append(len(stack))
            case "t":
                stack.append(tuple(self._since(self._marks.pop())))
            case "\x85" | "\x86" | "\x87":
                stack.append(tuple(self._since(len(stack) - TUPLES[code])))
            case "a":
                self._append(self._since(len(stack) - 1))
            case "e":
                self._append(self._since(self._marks.pop()))
            case "s":
                self._set(self._since(len(stack) - 2))
            case "u":
                self._set(self._since(self._marks.pop()))
            case "c":
                stack.append(self._named())
            case "Q":
                stack.append(self._storage(stack.pop()))
            case "R" | "\x81":
                name, arguments = self._since(len(stack) - 2)
                stack.append(self._made(name, arguments))
            case "b":
                self._set_state(stack.pop())
            case _:
                self._require(False)

    def _require(self, condition: bool, wrong: str = BROKEN) -> None:
        require(condition, self._path, wrong)

    def _take(self, length: int) -> bytes:
        """Return the next bytes."""
        start, self._at = self._at, self._at + length
        self._require(self._at <= len(self._content))
        return self._content[start : self._at]

    def _number(self, form: str) -> Any:
        """Return the next number, in a format of `struct`."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _since(self, first: int) -> list[Any]:
        """Remove all objects from this place in the stack upwards, and return them."""
        self._require(0 <= first <= len(self._stack))
        taken = self._stack[first:]
        del self._stack[first:]
        return taken

    def _append(self, items: list[Any]) -> None:
        """Append items to the list on top of the stack."""
        target = self._stack[-1]
        self._require(isinstance(target, list | Opaque))
        if isinstance(target, list):
            target.extend(items)

    def _set(self, items: list[Any]) -> None:
        """Set items, each a key and its value, of the dictionary on top of the stack."""
        target = self._stack[-1]
        self._require(isinstance(target, dict | Opaque) and len(items) % 2 == 0)
        if isinstance(target, dict):
            for key in items[::2]:
                short = type(key) is str and len(key) <= LONGEST_KEY
                self._require(short or (type(key) is int and abs(key) < LARGEST_KEY) or key is None)
            target.update(zip(items[::2], items[1::2], strict=True))

    def _set_state(self, state: Any) -> None:
        """Give the object on top of the stack its state; a dictionary's own attributes are dropped."""
        target = self._stack[-1]
        self._require(isinstance(target, dict | Opaque))
        if isinstance(target, Opaque):
            target.state = state

    def _named(self) -> Name:
        """Return the next name: two lines, of a module and of what is in it."""
        module, name = self._line(), self._line()
        full = f"{module}.{name}"
        self._require(full in ALLOWED, CODE)
        return ALLOWED[full]

    def _line(self) -> str:
        """Return the next line."""
        end = self._content.find(b"\n", self._at, self._at + LONGEST_NAME)
        self._require(end >= 0)
        return self._take(end + 1 - self._at)[:-1].decode()

    def _made(self, name: Any, arguments: Any) -> Any:
        """Return the object for which the file calls a name with arguments."""
        self._require(isinstance(name, Name) and isinstance(arguments, tuple))
        if name.full in TENSORS:
            self._require(len(arguments) == TENSORS[name.full])
            return self._tensor(*arguments[:4])
        if name.full == PARAMETER:
            self._require(len(arguments) == 3 and isinstance(arguments[0], Tensor))
            return arguments[0]
        if name.full == ORDERED:
            self._require(not arguments)
            return {}
        self._require(name.full in OPAQUE, CODE)
        return Opaque()

    def _storage(self, reference: Any) -> Storage:
        """Return the numbers of an entry. The reference names it, the device that they were on, and how many they are."""
        self._require(isinstance(reference, tuple) and len(reference) == 5 and isinstance(reference[0], str))
        kind, name, key, _, count = reference
        self._require(kind == "storage" and isinstance(name, Name) and name.full in STORAGES)
        self._require(type(key) is str and len(key) <= LONGEST_NAME and type(count) is int)
        entry, dtype = f"data/{key}", STORAGES[name.full]
        self._require(self._archive.sizes.get(entry) == count * dtype.itemsize)
        if key not in self._storages:
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = Storage(torch.frombuffer(self._archive.read(entry), dtype=dtype) if count else empty)
        self._require(self._storages[key].numbers.dtype == dtype)
        return self._storages[key]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """Return a view of a storage that starts at `offset`; it must lie inside."""
        self._require(isinstance(storage, Storage) and _are_sizes((offset,)))
        self._require(_are_sizes(size) and _are_sizes(stride) and len(size) == len(stride) and math.prod(size) < 2**60)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self._require(0 in size or last < storage.numbers.numel())
        return storage.numbers.as_strided(size, stride, offset)


def _are_sizes(found: Any) -> bool:
    """Return whether this is a tuple of a few integers that torch can handle."""
    few = isinstance(found, tuple) and len(found) <= MAX_DIMENSIONS
    return few and all(type(n) is int and 0 <= n < 2**60 for n in found)
