"""Files of torch.save: what torch reads is read alike; what can be read in two ways, or costs more than it shows, is refused."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perfusion_core import PerfusionError
from perfusion_core.foreign_formats import load
from perfusion_core.torch_archive import END, MAX_ENTRIES, RECORD, Archive
from perfusion_core.torch_pickle import CODE, LONGEST_KEY, MAX_PICKLE, MAX_STEPS, TOO_LONG, Opaque
from scripts.setup.bootstrap import Setup
from tests.measuring import measure

BROKEN = "not a complete torch.save file"
NEITHER = "not a concept from perfusion-pytorch or"
MOST = 64 * 2**20


def saved(content: object, **how: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def concept(value: float = 1, **more: object) -> dict[str, Any]:
    """What passes for a concept of perfusion-pytorch's before its parts are looked at."""
    return {"embed_params": torch.full((64,), float(value)), "key_value_params": []} | more


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def loaded(content: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    return load(path)


def refusal(content: bytes, tmp_path: Path) -> str:
    """The one sentence that refuses a file; anything but a PerfusionError fails the test."""
    with pytest.raises(PerfusionError) as caught:
        loaded(content, tmp_path)
    text = str(caught.value)
    assert text.endswith(".") and len(text) < 500 and text.isprintable(), text
    assert caught.value.__cause__ is None  # it would be printed too, and can quote the file
    return text


class Held:
    """Stands for a storage when it is pickled."""


class View:
    """Is a tensor when it is unpickled."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())


def with_storage(reference: tuple, content: Callable[[Held], object]) -> bytes:
    """A pickle whose only storage is told of in these words."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: object) -> tuple | None:
            return reference if isinstance(each, Held) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content(Held()))
    return buffer.getvalue()


# ---- what is read ------------------------------------------------------------------------------------------------------------


def equal(ours: Any, torchs: Any) -> bool:
    if isinstance(torchs, Tensor):
        return ours.dtype == torchs.dtype and ours.shape == torchs.shape and torch.equal(ours, torchs)
    if isinstance(torchs, dict):
        return list(ours) == list(torchs) and all(equal(ours[key], torchs[key]) for key in torchs)
    if isinstance(torchs, list | tuple):
        return type(ours) is type(torchs) and len(ours) == len(torchs) and all(map(equal, ours, torchs))
    return type(ours) is type(torchs) and ours == torchs


def test_what_is_read_is_what_torch_reads(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    content = concept(
        views=[whole, whole[1:3, ::2], whole.T, whole[2], whole[3, 5], whole[0, :1].expand(10**6, 7)],
        dtypes=[torch.arange(5).to(dtype) for dtype in dtypes] + [torch.tensor([True, False])],
        empty=[torch.empty(0), torch.empty(3, 0), torch.empty(0, dtype=torch.float64)],
        parameter=nn.Parameter(torch.randn(3)),
        ordered=OrderedDict(a=1, b=(2,)),
        numbers=[0, 255, 256, -1, 65535, 65536, 2**31, -(2**40), 2**100, 0.1, float("inf"), True, False, None],
        texts=["", "a", "テディ 🧸", "x" * 10_000],
        tuples=[(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    )
    content |= {7: "seven", -1: [], None: {}}
    for file in (saved(content), zipped(unzipped(saved(content)))):
        torchs = torch.load(io.BytesIO(file), weights_only=True)
        ours = loaded(file, tmp_path)
        assert equal(ours, torchs) and type(ours["parameter"]) is Tensor
        assert ours["views"][0].untyped_storage().data_ptr() == ours["views"][2].untyped_storage().data_ptr()


def test_containers_that_nothing_is_read_from_stand_for_themselves(tmp_path: Path) -> None:
    found = loaded(
        saved(concept(a=defaultdict(list, {"x": 1}), b={1, 2}, c=nn.ParameterDict({"w": nn.Parameter(torch.ones(2))}))), tmp_path
    )
    assert isinstance(found["a"], Opaque) and isinstance(found["b"], Opaque) and isinstance(found["c"], Opaque)
    assert torch.equal(found["c"].state["_parameters"]["w"], torch.ones(2))


def test_an_entry_is_in_memory_only_if_it_is_used(tmp_path: Path) -> None:
    entries = unzipped(saved(concept())) | {f"data/{i}": bytes(2**22) for i in range(10, 20)}
    (tmp_path / "x.pt").write_bytes(zipped(entries))
    tracemalloc.start()
    load(tmp_path / "x.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


# ---- archives that two readers see differently -------------------------------------------------------------------------------


def patched(content: bytes, which: int, field: int, value: int) -> bytes:
    """A field of a record of the directory replaced."""
    start = END.unpack(content[-END.size :])[6]
    for _ in range(which):
        start += RECORD.size + sum(RECORD.unpack_from(content, start)[10:13])
    fields = list(RECORD.unpack_from(content, start))
    fields[field] = value
    return content[:start] + RECORD.pack(*fields) + content[start + RECORD.size :]


def offset_of(content: bytes, which: int) -> int:
    start = END.unpack(content[-END.size :])[6]
    for _ in range(which):
        start += RECORD.size + sum(RECORD.unpack_from(content, start)[10:13])
    return RECORD.unpack_from(content, start)[16]


def two_directories(good: bytes) -> bytes:
    """zipfile counts offsets from where the last archive starts, torch from the file's start: each reads another concept."""
    return good + zipped(unzipped(saved(concept(2))))


def overlapping(good: bytes) -> bytes:
    names = list(unzipped(good))
    assert names[0] == "data.pkl"
    return patched(good, names.index("version"), 16, offset_of(good, names.index("data/0")))


TWO_FILES: dict[str, Callable[[bytes], bytes]] = {
    "two directories": two_directories,
    "something before": lambda good: b"before" + good,
    "something behind": lambda good: good + b"\0" * 22,
    "a comment": lambda good: good[:-2] + b"\5\0hello",
    "a file behind a file": lambda good: good + good,
    "overlapping entries": overlapping,
    "compressed": lambda good: zipped(unzipped(good), zipfile.ZIP_DEFLATED),
    "a damaged tensor": lambda good: good.replace(struct.pack("<f", 1.0) * 2, struct.pack("<2f", 1, 5), 1),
    "another size": lambda good: patched(good, 0, 9, 1000),
    "an entry too few": lambda good: (
        good[: -END.size] + END.pack(*[n - (i in (3, 4)) if i else n for i, n in enumerate(END.unpack(good[-22:]))])
    ),
    "two pickles": lambda good: zipped(unzipped(good) | {"more/data.pkl": b"\x80\x02N."}),
    "two of one name": lambda good: zipped(unzipped(good) | {"data/1": b"abcd", "data/2": b"efgh"}).replace(b"data/2", b"data/1"),
    "another byte order": lambda good: zipped(unzipped(good) | {"byteorder": b"big"}),
    "no pickle": lambda good: zipped({name: each for name, each in unzipped(good).items() if name != "data.pkl"}),
    "nothing": lambda good: zipped({}),
}


@pytest.mark.parametrize("name", TWO_FILES)
def test_an_archive_that_can_be_read_in_two_ways_is_refused(name: str, tmp_path: Path) -> None:
    good = zipped(unzipped(saved(concept())))
    assert torch.equal(loaded(good, tmp_path)["embed_params"], torch.ones(64))
    hostile = TWO_FILES[name](good)
    assert hostile != good and BROKEN in refusal(hostile, tmp_path)


def test_every_part_of_the_end_that_torch_writes_is_checked(tmp_path: Path) -> None:
    """The bytes of both end records; those that only tell the writer's version may be anything."""
    good = saved(concept())
    loaded(good, tmp_path)
    start = len(good) - 98
    for at in range(start, len(good)):
        changed = bytearray(good)
        changed[at] ^= 1
        if at - start in range(12, 16):
            loaded(bytes(changed), tmp_path)
        else:
            assert BROKEN in refusal(bytes(changed), tmp_path), at - start


def test_an_old_pickle_is_refused_with_a_way_out_also_with_an_archive_behind_it(tmp_path: Path) -> None:
    old, good = saved(concept(), _use_new_zipfile_serialization=False), zipped(unzipped(saved(concept())))
    # torch reads the pickle in front, which asks for 300 GB; the archive behind it is all that zipfile sees.
    bomb = b"".join(pickle.dumps(each, 2) for each in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    bomb += with_storage(("storage", torch.FloatStorage, "0", "cpu", 75 * 10**9, None), lambda held: held)
    for content in (old, old + good, bomb + good):
        assert (
            "in the format that torch.save used before torch 1.6; if you trust it, load it in Python and save it again"
            in refusal(content, tmp_path)
        )


@pytest.mark.parametrize("names", [MAX_ENTRIES, 60_000])
def test_an_archive_of_too_many_entries_is_refused_before_they_are_looked_at(
    names: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = unzipped(saved(concept()))
    few = entries | {f"more/{i}": b"" for i in range(MAX_ENTRIES - len(entries))}
    assert loaded(zipped(few), tmp_path)["key_value_params"] == []
    monkeypatch.setattr(Archive, "_directory", None)
    assert BROKEN in refusal(zipped(few | {f"and/{i}": b"" for i in range(names - MAX_ENTRIES + 1)}), tmp_path)


# ---- pickles that cost more than they show -----------------------------------------------------------------------------------

START = b"\x80\x02"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\nq\0((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
ARGUMENTS = TENSOR + b"K\0))\x89Ntq\1"
NESTED = b")" + b"q\0h\0\x86" * 60
HALF = MAX_STEPS // 2 - 20


def text(of: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(of)) + of


BOMBS: dict[str, tuple[bytes, str]] = {
    "a large number in the memo": (b"Nr\0\0\0\1.", NEITHER),
    "the largest number in the memo": (b"Nr\xff\xff\xff\xff.", NEITHER),
    "nested tuples as a key": (b"}" + NESTED + b"Ns.", BROKEN),
    "an object as a key": (b"}c__builtin__\nset\n)RNs.", BROKEN),
    "integers in one place of a dictionary": (
        b"}(" + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 20_000)) + b"u.",
        BROKEN,
    ),
    "a long key again and again": (b"}" + text(b"x" * (LONGEST_KEY + 1)) + b"q\0Nsh\0Ns.", BROKEN),
    "a long storage's name again and again": (
        TENSOR.replace(b"X\1\0\0\x000", text(b"0" * 10**6)) + b".",
        BROKEN,
    ),
    "names of nothing": (b"ca\na\n0" * 10_000 + b".", CODE),
    "long names": (b"c" + b"a" * 10**6 + b"\na\n.", BROKEN),
    "a million instructions": (b"N0" * 500_000 + b".", BROKEN),
    "a million constants": (b"N" * 10**6 + b".", TOO_LONG),
    "a long pickle": (text(b"x" * MAX_PICKLE) + b".", TOO_LONG),
    "deep lists": (b"]" * HALF + b"a" * (HALF - 1) + b".", NEITHER),
    "deep tuples": (b")" + b"\x85" * 2 * HALF + b".", NEITHER),
    "a set of a list again and again": (
        b"](" + b"N" * 1000 + b"e\x85q\0c__builtin__\nset\nq\1(" + b"h\1h\0R" * 20_000 + b"t\x87.",
        NEITHER,
    ),
    "a state again and again": (
        b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(10_000)) + b"uq\0"
        b"c__builtin__\nset\n)R" + b"h\0b" * 20_000 + b"\x86.",
        NEITHER,
    ),
    "a tensor as a reference": (ARGUMENTS.replace(b"K\0))", b"K\0J\0\0\0\x40\x85K\0\x85") + b"h\0h\1RQ.", BROKEN),
    "many tensors": (ARGUMENTS + b"(" + b"h\0h\1R" * (HALF // 2) + b"t\x87.", NEITHER),
    "marks": (b"(" * (MAX_STEPS - 10) + b".", BROKEN),
    "items for nothing": (b"(NNu.", BROKEN),
    "an item too few": (b"}(NNNu.", BROKEN),
    "nothing": (b"", BROKEN),
    "no end": (b"N", BROKEN),
    "more behind the end": (b"N.N", BROKEN),
    "a called storage": (b"ctorch\nFloatStorage\nJ\0\0\0\x40\x85R.", CODE),
    "a class by its extension number": (b"\x82\1)R.", BROKEN),
    "a class on the stack": (text(b"os") + text(b"system") + b"\x93)R.", BROKEN),
    "a persistent name in text": (b"Pstorage\n.", BROKEN),
    "a number in text": (b"I" + b"9" * 10**5 + b"\n.", BROKEN),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_costs_no_more_than_its_limits(name: str, tmp_path: Path) -> None:
    pickled, words = BOMBS[name]
    content = zipped({"data.pkl": START + pickled, "data/0": bytes(4)})
    tracemalloc.start()
    said = refusal(content, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words in said and peak < MOST + len(content)


@pytest.mark.parametrize(
    ("count", "offset", "size", "stride"),
    [
        (2, 0, (2,), (1,)),
        (1, 1, (1,), (1,)),
        (1, 0, (2,), (1,)),
        (1, 0, (2, 2), (0, 1)),
        (1, -1, (1,), (1,)),
        (1, 0, (-1,), (1,)),
        (1, 0, (1,), (-1,)),
        (1, 0, (1,), ()),
        (1, 0, (2**30, 2**31), (0, 0)),
        (1, 0, (2**70,), (0,)),
        (1, 0, (1,) * 9, (1,) * 9),
        (1, 0, (1.0,), (1,)),
        (1, 0, (True,), (1,)),
        (1, 0, [1], [1]),
        (-1, 0, (0,), (1,)),
    ],
)
def test_a_view_beyond_its_storage_is_refused(count: Any, offset: Any, size: Any, stride: Any, tmp_path: Path) -> None:
    def file(count: Any, *view: Any) -> bytes:
        reference = ("storage", torch.FloatStorage, "0", "cpu", count)
        pickled = with_storage(reference, lambda held: {"embed_params": View(held, *view), "key_value_params": []})
        return zipped({"data.pkl": pickled, "data/0": bytes(4)})

    assert loaded(file(1, 0, (3, 1), (0, 1)), tmp_path)["embed_params"].shape == (3, 1)
    assert BROKEN in refusal(file(count, offset, size, stride), tmp_path)


def test_one_storage_has_one_type(tmp_path: Path) -> None:
    halves = (b"(" + TENSOR + b"tq\2" + TENSOR.replace(b"Float", b"Int")).replace(b"cpuK\1tQt", b"cpuK\1tQ0")
    assert BROKEN in refusal(zipped({"data.pkl": START + halves + b"t.", "data/0": bytes(4)}), tmp_path)


def test_a_file_is_validated_off_the_servers_event_loop(setup: Setup) -> None:
    measured = measure(setup.python, "inside_validation", setup.comfyui)
    assert measured["the loop ran"] == [True, True]
    assert measured["refused"][0] == [] and "angle brackets" in measured["refused"][1][0]
