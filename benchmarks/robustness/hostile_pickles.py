"""Damaged files of other implementations, for `hostile.py`: pickles with code, costly pickles, and ambiguous archives."""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.setup.bootstrap import ROOT

WIDTH, LAYERS = 8, {"input_blocks.1.1.attn2": 6, "middle_block.1.attn2": 4}
CHENDARYENS = ROOT / "tests" / "data" / "chendaryen.ckpt"
CHENDARYENS_WIDTH, CHENDARYENS_LAYERS = (
    4,
    {
        "input_blocks.1.1.transformer_blocks.0.attn2": 2,
        "middle_block.1.transformer_blocks.0.attn2": 1,
    },
)
MARK = Path(tempfile.gettempdir()) / "perfusion-hostile-code-ran"
"""A file that exists if code in a pickle has run."""


def pickled(found: object, **how: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(found, buffer, **how)
    return buffer.getvalue()


def theirs() -> dict[str, Any]:
    """Return the content of a file of perfusion-pytorch."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, WIDTH, generator=generator)
    pairs = [[target, torch.randn(1, rows, generator=generator)] for rows in LAYERS.values() for _ in ("to_k", "to_v")]
    return {"embed_params": torch.randn(1, WIDTH, generator=generator), "key_value_params": pairs, "C_inv": torch.eye(WIDTH)}


def entries_of(content: bytes) -> dict[str, bytes]:
    """Return the entries of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive with these entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ---- pickles that do what no concept does --------------------------------------------------------------------------------------


class Harm:
    """An object whose pickle makes the unpickler call an arbitrary function, such as one that writes a file."""

    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


def code(rng: random.Random, good: bytes) -> bytes:
    """Put code into a pickle."""
    mark = str(MARK)
    calls: tuple[tuple, ...] = (
        (open, (mark, "w")),
        (exec, (f"open({mark!r}, 'w')",)),
        (eval, (f"open({mark!r}, 'w')",)),
        (os.system, (f"touch {mark}",)),
        (subprocess.check_output, (["touch", mark],)),
        (getattr, ("x", "__class__")),
        (torch.load, (mark,)),
        (bytearray, (2**33,)),
    )
    harm, found = Harm(rng.choice(calls)), theirs()
    where = rng.randrange(5)
    if where == 0:
        return pickle.dumps(harm)
    if where == 1:
        return pickled(harm)
    found[rng.choice(sorted(found)) if where == 2 else "more"] = harm
    return pickled(found, _use_new_zipfile_serialization=where != 4)


def objects(rng: random.Random, good: bytes) -> bytes:
    """Put unexpected objects into a pickle, or leave expected ones out."""
    deep: list = []
    for _ in range(rng.choice((10, 100))):
        deep = [deep]
    found, wide = theirs(), torch.zeros(1).expand(2 ** rng.choice((10, 40)))
    odd = (
        None, 3, "text", [], {}, deep, torch.ones(3).to_sparse(), torch.ones(2, 2, dtype=torch.int64), torch.device("cpu"),
        torch.full((1, WIDTH), torch.nan), torch.ones(0), torch.ones(1, WIDTH, dtype=torch.complex64), wide,
        torch.nn.Parameter(torch.ones(1, WIDTH)),
    )  # fmt: skip
    name = rng.choice(sorted(found))
    if name == "key_value_params" and rng.random() < 0.7:
        found[name][rng.randrange(4)] = rng.choice((*odd, found[name][0][:1], [wide, wide]))
    else:
        found[name] = rng.choice(odd)
    if rng.random() < 0.2:
        del found[rng.choice(sorted(found))]
    return pickled(rng.choice(odd)) if rng.random() < 0.1 else pickled(found)


def instructions(rng: random.Random, good: bytes) -> bytes:
    """Change bytes of the pickle; the archive around it stays intact."""
    entries = entries_of(good)
    name = next(name for name in entries if name.endswith("/data.pkl"))
    made = bytearray(entries[name])
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(made))
        what = rng.randrange(3)
        if what == 0:
            made[place] = rng.randrange(256)
        elif what == 1:
            del made[place : place + rng.choice((1, 4, 40))]
        else:
            made[place:place] = rng.choice((bytes(made[: rng.randrange(60)]), rng.randbytes(4), b"h\0" * 9, b"(", b"0", b"Q"))
    return archive_of(entries | {name: bytes(made)})


# ---- pickles that cost more than they show -------------------------------------------------------------------------------------

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\nq\0((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
    b"K\0K\1\x85K\0\x85\x89Ntq\1"
)
"""A maker of tensors, kept as 0, and arguments for it, kept as 1; both stay on the stack."""
COLLIDING = 2**61 - 1
"""All multiples of this integer have the same hash."""


def costly(rng: random.Random) -> bytes:
    """Return a pickle that costs much time or memory if a reader does whatever the pickle says."""
    n = rng.choice((10, 30, 1000, 30_000, 100_000))
    index = struct.pack("<I", rng.choice((2**20, 2**24, 2**31, 2**32 - 1)))
    short = n // 10
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: b"Nr" + index + b".",
        lambda: b"}" + b"N" + b"".join(b"r" + struct.pack("<I", i * 40_000) for i in range(n)) + b"s.",
        lambda: b"})" + b"q\0h\0\x86" * n + b"Ns.",
        lambda: b"ca\na\n0" * n + b".",
        lambda: b"c" + b"a" * n + b"\na\n.",
        lambda: b"]" * n + b"a" * (n - 1) + b".",
        lambda: b")" + b"\x85" * n + b".",
        lambda: b"(" * n + b".",
        lambda: b"(" + b"}" * n + b"t.",
        lambda: b"}" * n + b"Ns" * n + b".",
        lambda: b"N" * n + b"0" * n + b".",
        lambda: b"}(" + b"".join(b"\x8a\x0b" + (i * COLLIDING).to_bytes(11, "little") + b"N" for i in range(short)) + b"u.",
        lambda: b"}(" + b"".join(b"J" + struct.pack("<i", (i * 2**13) % 2**31) + b"N" for i in range(n)) + b"u.",
        lambda: b"}X" + struct.pack("<I", 10 * n) + b"k" * 10 * n + b"q\0N" + b"sh\0N" * short + b"s.",
        lambda: b"](" + b"N" * short + b"e\x85q\0c__builtin__\nset\nq\1(" + b"h\1h\0R" * short + b"t\x87.",
        lambda: b"](" + b"N" * short + b"eq\0](" + b"(h\0e" * short + b"t.",
        lambda: (
            b"}("
            + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(short))
            + b"uq\0c__builtin__\nset\n)R"
            + b"h\0b" * n
            + b"."
        ),
        lambda: TENSOR + b"(" + b"h\0h\1R" * n + b"t\x87.",
        lambda: TENSOR.replace(b"K\1\x85K\0\x85", b"J\0\0\0\x40\x85K\0\x85") + b"h\0h\1RQ.",
        lambda: TENSOR.replace(b"K\1tQ", b"J\0\0\0\x40tQ") + b"h\0h\1R.",
        lambda: TENSOR.replace(b"X\1\0\0\x000", b"X" + struct.pack("<I", n) + b"0" * n + b"q\2") + b".",
        lambda: b"ctorch\nFloatStorage\nJ\0\0\0\x40\x85R.",
        lambda: b"c__builtin__\nbytearray\nJ\0\0\0\x40\x85R.",
        lambda: b"I" + b"9" * n + b"\n.",
        lambda: b"\x8b" + struct.pack("<i", n) + b"\x7f" * n + b".",
        lambda: b"X" + index + b"x" * n + b".",
        lambda: b"X" + struct.pack("<I", 40 * n) + b"x" * 40 * n + b".",
        lambda: b"(" + (b"\x8a\xff" + b"\x7f" * 255) * n + b"t.",
    )
    return b"\x80\x02" + rng.choice(choices)()


def bombs(rng: random.Random, good: bytes) -> bytes:
    """Replace the pickle with a costly one."""
    return archive_of({"archive/data.pkl": costly(rng), "archive/data/0": bytes(4), "archive/version": b"3\n"})


# ---- archives ------------------------------------------------------------------------------------------------------------------


@functools.cache
def crowded(count: int) -> bytes:
    """Return a valid file with this many additional entries."""
    return archive_of(entries_of(pickled(theirs())) | {f"archive/data/{i}": b"" for i in range(100, 100 + count)})


@functools.cache
def swollen(name: str) -> bytes:
    """Return an archive with an entry that unpacks to 80 MB."""
    return archive_of(
        {"archive/data.pkl": b"\x80\x02N.", "archive/data/0": b""} | {name: b"\0" * (80 * 2**20)}, zipfile.ZIP_DEFLATED
    )


def legacy(rng: random.Random) -> bytes:
    """Return a file in the format of torch before 1.6, which requests a large storage or is valid."""
    if rng.random() < 0.3:
        return pickled(theirs(), _use_new_zipfile_serialization=False)
    count = struct.pack("<i", rng.choice((2**20, 2**27, 2**31 - 1)))
    head = b"".join(pickle.dumps(each, 2) for each in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    return head + b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuJ" + count + b"NtQ."


def records(rng: random.Random, good: bytes) -> bytes:
    """Change numbers in the directory or in the end record of the archive."""
    made, first = bytearray(good), good.index(b"PK\1\2")
    for _ in range(rng.choice((1, 1, 2, 6))):
        place = rng.choice((first + rng.randrange(46), rng.randrange(first, len(made)), len(made) - rng.randrange(8, 98)))
        lie = rng.choice((b"\0", b"\xff", b"\xff\xff", b"\xff" * 4, b"\0" * 4, rng.randbytes(1), good[first + 42 : first + 46]))
        made[place : place + len(lie)] = lie
    return bytes(made)


def archives(rng: random.Random, good: bytes) -> bytes:
    """Build an archive that different readers read differently, or that unpacks to a lot of data."""
    entries = entries_of(good)
    again = archive_of(entries)
    pickle_name = next(name for name in entries if name.endswith("/data.pkl"))
    directory = again.index(b"PK\1\2")
    last = again.rindex(b"PK\1\2")
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: again + again,
        lambda: good + again,
        lambda: again + archive_of(entries | {pickle_name: costly(rng)}),
        lambda: archive_of({pickle_name: costly(rng)}) + good,
        lambda: legacy(rng),
        lambda: legacy(rng) + good,
        lambda: legacy(rng) + again,
        lambda: again[:directory] + again[directory : directory + 42] + again[last + 42 : last + 46] + again[directory + 46 :],
        lambda: again[: last + 42] + b"\0" * 4 + again[last + 46 :],
        lambda: archive_of(entries, zipfile.ZIP_DEFLATED),
        lambda: crowded(rng.choice((1000, 2000, 60_000))),
        lambda: swollen(rng.choice((pickle_name, "archive/data/0", "../../x"))),
        lambda: archive_of(entries | {"other/data.pkl": costly(rng)}),
        lambda: archive_of({name: each for name, each in entries.items() if name != rng.choice(sorted(entries))}),
        lambda: archive_of({**entries, "../../../x": b"x", "/etc/x": b"x", "archive/\0": b"x"}),
        lambda: again[:-2] + struct.pack("<H", len(good)) + good[:65_000],
    )
    return rng.choice(choices)()


DAMAGES = (code, code, objects, objects, instructions, instructions, bombs, bombs, records, archives, archives)
