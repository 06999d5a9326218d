"""Hostile pictures, notes in concept files, tables of jobs and captions for `hostile`: how to damage and how to read them."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image

from perfusion_core import PerfusionError, captions
from perfusion_core.concept import search_words
from perfusion_core.concept_file import MAX_PREVIEW
from perfusion_core.safe_files import read_metadata
from perfusion_fleet import index, table

Damage = Callable[[random.Random, bytes], bytes]

HUGE = "9" * 400
DEEP = "[" * 100_000
SURROGATE = "\ud800"


# ---- pictures ----------------------------------------------------------------------------------------------------------------


def picture(kind: str, mode: str = "RGB", side: int = 24, **options: object) -> bytes:
    """Return the bytes of a small picture."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def frame_at(jpeg: bytes) -> int:
    """Return the offset of the sizes in a JPEG picture: height and width, two bytes each."""
    return next(at for at in (jpeg.find(bytes([0xFF, marker, 0])) for marker in (0xC0, 0xC2)) if at > 0) + 5


def claims(rng: random.Random, jpeg: bytes) -> bytes:
    """Return the picture with a different size in its header."""
    at = frame_at(jpeg)
    sizes = (60_000, 60_000), (65_535, 1), (1, 65_535), (0, 24), (24, 0), (0, 0), (1025, 24), (1024, 1024), (8192, 8192), (25, 23)
    return jpeg[:at] + struct.pack(">HH", *rng.choice(sizes)) + jpeg[at + 4 :]


def two_headers(rng: random.Random, jpeg: bytes) -> bytes:
    """Return the picture with a second header; decoders differ in which of the two they use."""
    at = frame_at(jpeg) - 5
    frame = jpeg[at : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")]
    other = frame[:5] + struct.pack(">HH", *rng.choice(((60_000, 60_000), (8, 8)))) + frame[9:]
    place = rng.choice((2, at, at + len(frame), len(jpeg) - 2))
    garbage = rng.choice((b"", b"\0" * 7, b"\xff\xff", b"\xff\x01", b"\xff\xd0", b"\xff\xe1\0\1", b"\xff\xe1\xff\xff"))
    return jpeg[:place] + garbage + other + jpeg[place:]


def many_scans(rng: random.Random, jpeg: bytes) -> bytes:
    """Return a progressive picture of the largest allowed size, whose last full scan is repeated up to the last byte."""
    whole = picture("JPEG", side=1024, progressive=True, quality=5)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + last * ((MAX_PREVIEW - len(whole)) // len(last)) + whole[-2:]


def other_kinds(rng: random.Random, jpeg: bytes) -> bytes:
    """Return something that is not a JPEG picture, but that a browser may still show."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n"
    vector = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    made = (picture("PNG"), picture("WEBP"), picture("GIF"), png_bomb(rng, b""), postscript, vector, b"\xff\xd8\xff", b"")
    return rng.choice((b"", b"\xff\xd8\xff")) + rng.choice((*made, rng.randbytes(300)))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of these chunks, RGBA with 8 bits."""
    every = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), *chunks, (b"IEND", b"")
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def zeros(megabytes: int) -> bytes:
    """Return compressed zeros."""
    return zlib.compress(bytes(megabytes * 2**20), 9)


def png_bomb(rng: random.Random, good: bytes) -> bytes:
    """Return a PNG file whose texts, profile or pixels unpack to a much larger size."""
    text, lines = b"a\0\0" + zeros(80), rng.choice((16, 4000))
    return rng.choice(
        (
            png(16, 16, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(65 * 16)))),
            png(16, 16, *[(b"zTXt", b"a\0\0" + zeros(1))] * 200, (b"IDAT", zlib.compress(bytes(65 * 16)))),
            png(16, 16, (b"IDAT", zlib.compress(bytes(65 * 16))), (b"zTXt", text)),
            png(16, 16, (b"iCCP", b"a\0\0" + zeros(80)), (b"IDAT", zlib.compress(bytes(65 * 16)))),
            png(16, 16, (b"iTXt", b"a\0\1\0\0\0" + zeros(80)), (b"IDAT", zlib.compress(bytes(65 * 16)))),
            png(60_000, 60_000, (b"IDAT", zeros(80))),
            png(2**31 - 1, 2**31 - 1, (b"IDAT", zeros(1))),
            png(0, 0, (b"IDAT", zeros(1))),
            png(16, lines, (b"IDAT", zeros(80))),
        )
    )


def torn(rng: random.Random, good: bytes) -> bytes:
    """Return the picture with a piece of it missing or changed."""
    at, more = rng.randrange(2, len(good)), rng.randrange(1, 40)
    return good[:at] + rng.choice((b"", rng.randbytes(more))) + good[at + more :]


JPEGS = (claims, claims, two_headers, many_scans, other_kinds, torn)


def training_picture(rng: random.Random, good: bytes) -> bytes:
    """Return a hostile picture to train from."""
    return rng.choice((png_bomb, png_bomb, other_kinds, torn, lambda rng, _: claims(rng, picture("JPEG"))))(rng, good)


# ---- notes in concept files ----------------------------------------------------------------------------------------------------


def with_note(good: bytes, key: str, text: str) -> bytes:
    """Return a concept file's bytes with a different text in its metadata."""
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    header.setdefault("__metadata__", {})[key] = text
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + good[8 + length :]


def preview(rng: random.Random, good: bytes) -> bytes:
    """Put a hostile preview into a concept file."""
    content = rng.choice(JPEGS)(rng, picture("JPEG", progressive=rng.random() < 0.3))
    text = base64.b64encode(content).decode()
    return with_note(good, "ssmd_cover_images", json.dumps(rng.choice(([text], [text, text], text, {"0": text}, [[text]], [HUGE]))))


def training(rng: random.Random, good: bytes) -> bytes:
    """Put hostile notes of the training into a concept file."""
    values = '"x"', HUGE, f"-{HUGE}", "9" * 5000, "1e999", "NaN", "-Infinity", "true", "null", "[1]", '"\\ud800"', DEEP, '{"a": 1}'
    names = "loss", "held_out_loss", "followed", "steps", "seed", "lock", "initial_word", "of_ours", "__proto__", "", "x" * 50_000
    told = ", ".join(f'"{rng.choice(names)}": {rng.choice(values)}' for _ in range(rng.choice((1, 1, 3))))
    many = ", ".join(f'"{i}": 1' for i in range(60_000))
    return with_note(good, "training", rng.choice((f"{{{told}}}",) * 9 + (f"{{{many}}}",)))


def words(rng: random.Random, good: bytes) -> bytes:
    """Put hostile words into a concept file."""
    key = rng.choice(("modelspec.trigger_phrase", "superclass", "modelspec.author", "modelspec.description"))
    return with_note(good, key, rng.choice(("x" * 900_000, f"<{'x' * 65}>", "", "<\x1b[31m>", "<a>\n", "\u202e", "<script>")))


# ---- tables and captions -------------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, object]]:
    """Return a valid table of jobs."""
    return [{"name": f"job-{i}", "pictures": pictures(), "superclass": "teddy", "steps": 5, "flip": 0.5} for i in range(3)]


@cache
def folder() -> tempfile.TemporaryDirectory:
    """Return a folder with one picture; it exists until this process ends."""
    made = tempfile.TemporaryDirectory()
    (Path(made.name) / "a.png").write_bytes(picture("PNG", "RGBA"))
    return made


def pictures() -> str:
    """Return the path of the folder with one picture."""
    return folder().name


def json_table(rng: random.Random, good: bytes) -> bytes:
    """Damage a table in JSON."""
    told = rows()
    values = None, True, -1, 1e308, [], {}, [[]], "\0", "..", SURROGATE, "x" * 5000, "\x1b[31m", "a\nb", "//host/share", "C:\\", "~"
    row = rng.choice(told)
    row[rng.choice((*row, "masks", "trigger", "author", "more", "\x1b[31m", SURROGATE, "x" * 5000))] = rng.choice(values)
    text = json.dumps(told)
    whole = (
        DEEP, "[" * 900 + "]" * 900, f"[{HUGE}]", "[" + "{}," * 300_000 + "{}]", "[" + "[]," * 600_000 + "[]]", "NaN", '"x"',
        "[null]", f'[{{"name": {"[" * 300 + "]" * 300}}}]', " " * 3_000_000,
    )  # fmt: skip
    numbers = rng.choice((HUGE, f"-{HUGE}", "9" * 5000, "1e999", "NaN", "Infinity", "0.1" + HUGE, "[" * 300 + "]" * 300))
    text = rng.choice((text, text.replace("0.5", numbers).replace(": 5", f": {numbers}"), rng.choice(whole)))
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")), "surrogatepass")


def csv_table(rng: random.Random, good: bytes) -> bytes:
    """Damage a table in CSV."""
    path = pictures()
    whole = (
        "name," * 300_000 + "\n" + "a\n" * 200_000,
        "name,pictures\n" + "a\n" * 700_000,
        "name,pictures\n" + f"a,{path}\n" * 20_000,
        "name\n" + '"' + "x" * 200_000,
        "name,name,name\na,b,c\n",
        f"name,pictures\na,{path}" + "," * 100_000 + "x\n",
        "\n" * 2_000_000,
        "name\0,pictures\na\0b,c\n",
        f"name,pictures,{'x' * 100_000}\na,{path},3\n",
        f"name,pictures\n\x1b[31m,{path}\na\u202e,\x1b[31m\n..,..\n{'x' * 70},{path}\n",
        f"name,pictures,masks\na,{path},{'m' * 5000}\nb,{'p' * 5000},none\n",
    )
    return rng.choice(whole).encode(rng.choice(("utf-8", "utf-8", "utf-16")), "surrogatepass")


def caption_file(rng: random.Random, good: bytes) -> bytes:
    """Damage a file of captions."""
    whole = (
        "ab\n" * 2_700_000,
        "a cat\n" * 150_000,
        "x" * 8_000_000,
        "\U0001f431" * 2_000_000,
        "x" * 2001,
        "\0" * 99,
        "\n" * 8_000_000,
    )
    return rng.choice(whole).encode() + rng.choice((b"", b"", b"\xff\xfe", b"\xf0\x9f"))


# ---- readers -------------------------------------------------------------------------------------------------------------------


def in_index(path: Path) -> None:
    """Build the fleet's index of a kept concept, without writing it; raise PerfusionError with the message in its row."""
    job = table.Job(path.name.removesuffix(".safetensors"), (), (), "teddy", "<it>", "", "", {})
    row = index.entry(path.parent, job, index.KEPT)
    "\n".join(index.page([row], []))
    if row.state != index.FAILED:
        index.sheet(path.parent, [row])
    if row.fault:
        raise PerfusionError(row.fault)


def searched(path: Path) -> None:
    """Read the part of a file that the page's search uses."""
    kept = search_words(read_metadata(path))
    if len(str(kept)) > 1000:
        raise AssertionError(f"{len(str(kept))} characters are kept")


def in_table(path: Path) -> None:
    """Read a table of jobs; raise PerfusionError with the longest of its error messages."""
    _, faults = table.read(path)
    if faults:
        raise PerfusionError(max(faults, key=lambda said: (not said.isprintable(), len(said))))


def in_captions(path: Path) -> None:
    """Read a file of captions."""
    captions.in_file(path.parent, path.name)


def with_picture(good: bytes) -> bytes:
    """Return the bytes of a concept file with a preview and a training loss."""
    noted = with_note(good, "ssmd_cover_images", json.dumps([base64.b64encode(picture("JPEG")).decode()]))
    return with_note(noted, "training", '{"loss": 0.5, "steps": 4}')
