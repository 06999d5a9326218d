"""The zip container that torch.save writes, read so strictly that no two readers can see different files in it.

Every byte of the file belongs to exactly one entry or to the only directory, which ends the file; entries are not compressed. torch
writes such files since version 1.6. Everything is checked before an entry is read, and only what was checked is read.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .safe_files import require

BROKEN = "it is not a complete torch.save file; it may be truncated, or it may be another kind of file"
LEGACY = "it is in the format that torch.save used before torch 1.6; if you trust it, load it in Python and save it again"
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that files of torch before 1.6 begin with."""

MAX_ENTRIES = 2000
"""A concept for the 140 projections of SDXL has 290."""
MAX_DIRECTORY = 2**20
"""Bytes of the directory."""

LOCAL, RECORD, END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
"""The header before an entry, its record in the directory, and the record that ends the file."""
END_64 = struct.Struct("<4sQ2H2I4Q4sIQI")
"""What torch writes before END: the same fields with more digits, and their position."""
DESCRIBED, UTF8 = 0x8, 0x800
"""Flags of an entry: its sizes are repeated after it; its name is UTF-8."""


@dataclass(frozen=True)
class Entry:
    """The directory's record of an entry; `header` is where the entry's own header starts, `size` the bytes of its content."""

    name: bytes
    flags: int
    stored: bool
    checksum: int
    size: int
    header: int


class Archive:
    """The entries of an open file of torch.save.

    Attributes:
        sizes: name of each entry, without the folder that contains them all -> its size in bytes.
    """

    def __init__(self, file: BinaryIO, path: Path, max_bytes: int) -> None:
        """Check the whole container; `path` names the file in errors.

        Raises:
            PerfusionError: it is not one that torch.save writes, or its entries have more than `max_bytes` in total.
            OSError: the file cannot be read.
        """
        self._file, self._path = file, path
        count, length, start = self._end(file.seek(0, 2))
        entries = self._directory(count, length, start)
        unpacked = sum(entry.size for entry in entries)
        require(unpacked <= max_bytes, path, f"it unpacks to more than {max_bytes} bytes, the limit for a concept")
        starts = self._starts(entries, start)
        folders = [entry.name.removesuffix(b"data.pkl") for entry in entries if entry.name.endswith(b"/data.pkl")]
        self._require(len(folders) == 1 and all(entry.name.startswith(folders[0]) for entry in entries))
        # torch's own names are ASCII; latin-1 turns different bytes into different names.
        names = [entry.name.removeprefix(folders[0]).decode("latin-1") for entry in entries]
        self._contents = {name: (starts[entry.header], entry) for name, entry in zip(names, entries, strict=True)}
        self.sizes = {name: entry.size for name, (_, entry) in self._contents.items()}
        self._require(len(self.sizes) == count)

    def read(self, name: str) -> bytearray:
        """Return the content of an entry; raise PerfusionError if no entry has this name, or if it is damaged."""
        self._require(name in self._contents)
        start, entry = self._contents[name]
        content = bytearray(entry.size)
        self._file.seek(start)
        self._require(self._file.readinto(content) == entry.size and zlib.crc32(content) == entry.checksum)
        return content

    def _require(self, condition: bool) -> None:
        """Raise PerfusionError unless the condition holds."""
        if not condition:
            legacy = self._at(0, len(LEGACY_START)) == LEGACY_START
            require(False, self._path, LEGACY if legacy else BROKEN)

    def _at(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, or fewer where the file ends."""
        self._file.seek(start)
        return self._file.read(length)

    def _end(self, size: int) -> tuple[int, int, int]:
        """Return how many entries the directory of a file of `size` bytes has, its length and its start."""
        self._require(size >= END.size)
        end = size - END.size
        found = END.unpack(self._at(end, END.size))
        count, length, start = found[4:7]
        self._require(found == (b"PK\5\6", 0, 0, count, count, length, start, 0))
        self._require(count <= MAX_ENTRIES and length <= MAX_DIRECTORY)
        if start + length != end:
            self._require(start + length == end - END_64.size)
            found = END_64.unpack(self._at(start + length, END_64.size))
            versions, locator = found[2:4], (b"PK\6\7", 0, start + length, 1)
            self._require(found == (b"PK\6\6", 44, *versions, 0, 0, count, count, length, start, *locator))
        return count, length, start

    def _directory(self, count: int, length: int, start: int) -> list[Entry]:
        """Return the directory's records of its `count` entries."""
        content, entries, at = self._at(start, length), [], 0
        for _ in range(count):
            self._require(at + RECORD.size <= length)
            sign, _, _, flags, method, _, _, checksum, packed, size, *lengths, _, _, _, header = RECORD.unpack_from(content, at)
            self._require(sign == b"PK\1\2" and not flags & ~(DESCRIBED | UTF8))
            name = content[at + RECORD.size : at + RECORD.size + lengths[0]]
            entries.append(Entry(name, flags, method == 0 and packed == size, checksum, size, header))
            at += RECORD.size + sum(lengths)
        self._require(at == length)
        return entries

    def _starts(self, entries: list[Entry], end: int) -> dict[int, int]:
        """Return the start of each header -> the start of its content. Together the entries must fill the file up to `end`."""
        starts, at = {}, 0
        for entry in sorted(entries, key=lambda each: each.header):
            self._require(entry.header == at and entry.stored)
            head = self._at(at, LOCAL.size + len(entry.name))
            self._require(len(head) == LOCAL.size + len(entry.name))
            sign, _, flags, method, _, _, *sizes, _, extra = LOCAL.unpack_from(head)
            self._require((sign, flags, method, head[LOCAL.size :]) == (b"PK\3\4", entry.flags, 0, entry.name))
            told = [entry.checksum, entry.size, entry.size]
            self._require(sizes == told or (bool(flags & DESCRIBED) and sizes == [0, 0, 0]))
            starts[at] = at + len(head) + extra
            at = starts[at] + entry.size
            at += self._description(at, told) if flags & DESCRIBED else 0
        self._require(at == end)
        return starts

    def _description(self, start: int, told: list[int]) -> int:
        """Return the length of what is repeated after an entry: its checksum and sizes, of 4 or 8 bytes each."""
        for form in ("<4s3I", "<4sI2Q"):
            if self._at(start, struct.calcsize(form)) == struct.pack(form, b"PK\7\10", *told):
                return struct.calcsize(form)
        self._require(False)
        return 0
