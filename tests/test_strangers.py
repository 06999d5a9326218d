"""What comes from strangers beside tensors: previews, notes, tables of jobs, pictures, captions. Each is refused or left out in a
sentence, before anything large is decoded; one bad concept costs the fleet's index no more than its own row.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from perfusion_core import PerfusionError, captions
from perfusion_core.concept import Concept, search_words
from perfusion_core.concept_file import MAX_PREVIEW, MAX_SIDE, MAX_TEXT
from perfusion_core.jpeg import size_of
from perfusion_core.safe_files import stays_inside
from perfusion_fleet import index, table
from scripts.setup.bootstrap import ROOT

HUGE = "9" * 400
LAYERS = {"input_blocks.1.1.attn2": 6, "middle_block.1.attn2": 4}


def picture(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (24, 16), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(width: int, height: int, jpeg: bytes | None = None) -> bytes:
    """A JPEG picture with another size in its header."""
    jpeg = jpeg or picture()
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    every = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), *chunks, (b"IEND", b"")
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def told(value: object) -> str | None:
    """The name of a parameter in a test's id: bytes would stand there whole."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


PIXELS = b"IDAT", zlib.compress(bytes(65 * 16))


def concept(preview: bytes = b"", **training: object) -> Concept:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, generator=generator)
    values = {layer: torch.randn(rows, generator=generator) for layer, rows in LAYERS.items()}
    word = {"clip_l": torch.randn(1, 8, generator=generator)}
    return Concept("<it>", "teddy", "sd1", word, target, target, target, values, training=training, preview=preview)


def noted(path: Path, **texts: str) -> Path:
    """Write a concept file with other texts in its metadata."""
    concept(picture(), loss=0.5).save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= texts
    made = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(made)) + made + content[8 + length :])
    return path


def shows(*pictures: bytes) -> str:
    return json.dumps([base64.b64encode(each).decode() for each in pictures])


# ---- previews ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"exif": b"Exif\0\0" + picture(size=(8, 8))},
        {"comment": b"\xff"},
    ],
)
@pytest.mark.parametrize("size", [(24, 16), (1, 1), (300, 7)])
def test_the_size_of_a_jpeg_is_read_from_its_header(size: tuple[int, int], options: dict) -> None:
    made = picture(size=size, **options)
    assert size_of(made) == size and size_of(made[:2] + b"\xff\xff" + made[2:]) == size
    assert all(size_of(made[:length]) in (None, size) for length in range(len(made)))


FRAME = picture()[picture().index(b"\xff\xc0") :][:19]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff" + bytes(300),
        picture("PNG"),
        picture("WEBP"),
        picture("GIF"),
        picture()[:2] + FRAME + picture()[2:],
        picture()[:2] + b"\0" + picture()[2:],
        picture()[:2] + b"\xff\xe1\0\1" + picture()[2:],
        picture()[:2] + b"\xff\xd0" + picture()[2:],
        picture().replace(b"\xff\xc0", b"\xff\xc3"),
        picture().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    ],
    ids=told,
)
def test_what_decoders_could_read_differently_is_no_preview(content: bytes, tmp_path: Path) -> None:
    assert size_of(content) is None
    path = noted(tmp_path / "a.safetensors", ssmd_cover_images=shows(content))
    with pytest.raises(PerfusionError, match=r"its preview is not a JPEG picture of at most 12288 bytes and 1024 pixels a side\.$"):
        Concept.load(path)


@pytest.mark.parametrize("size", [(60_000, 60_000), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (65_535, 1), (0, 9), (9, 0)])
def test_a_preview_that_claims_to_be_huge_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    path = noted(tmp_path / "a.safetensors", ssmd_cover_images=shows(claiming(*size)))
    with pytest.raises(PerfusionError, match="its preview is not a JPEG picture"):
        Concept.load(path)
    largest = claiming(MAX_SIDE, MAX_SIDE)
    assert Concept.load(noted(path, ssmd_cover_images=shows(largest, picture("PNG")))).preview == largest


def test_the_page_has_the_limits_of_the_reader() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    found = dict(re.findall(r"^const (MAX_\w+) = ([\d *]+);", code, re.MULTILINE))
    assert (found["MAX_BYTES"], found["MAX_SIDE"], found["MAX_TEXT"]) == ("12 * 1024", "1024", "2 ** 20")
    assert (MAX_PREVIEW, MAX_SIDE, MAX_TEXT) == (12 * 1024, 1024, 2**20)


# ---- notes of the training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ['"x"', HUGE, f"-{HUGE}", "1e999", "NaN", "-Infinity", "true"])
@pytest.mark.parametrize("name", ["loss", "steps", "held_out_loss"])
def test_a_note_that_cannot_be_what_it_is_called_is_left_out(name: str, value: str, tmp_path: Path) -> None:
    told = f'{{"{name}": {value}, "batch": 4, "lock": "local", "ours": "x", "target_gradient": true, "theirs": 2.5}}'
    found = Concept.load(noted(tmp_path / "a.safetensors", training=told))
    assert found.training == {"batch": 4, "lock": "local", "ours": "x", "target_gradient": True, "theirs": 2.5}
    found.save(tmp_path / "b.safetensors")
    assert Concept.load(tmp_path / "b.safetensors").training == found.training


def test_numbers_of_any_name_are_finite_and_texts_are_texts(tmp_path: Path) -> None:
    told = f'{{"a": {HUGE}, "b": 1e999, "c": NaN, "d": {10**300}, "lock": 3, "mode": true, "e": "{HUGE}"}}'
    found = Concept.load(noted(tmp_path / "a.safetensors", training=told)).training
    assert found == {"d": 10**300, "e": HUGE}
    assert all(isinstance(value, str) or math.isfinite(value) for value in found.values())


def test_the_search_keeps_words_that_a_concept_can_have_and_no_others() -> None:
    def kept(trigger: object, superclass: object) -> tuple[str, str]:
        return search_words({"modelspec.trigger_phrase": trigger, "superclass": superclass})

    assert kept("<it>", "teddy") == ("<it>", "teddy") and search_words({}) == ("", "")
    assert kept(f"<{'x' * 64}>", "y" * 200) == (f"<{'x' * 64}>", "y" * 200)
    for bad in ("x" * 2**20, ["<it>"], {"a": 1}, 3, None):
        assert kept(bad, bad) == ("", "")


# ---- the fleet's index -----------------------------------------------------------------------------------------------------------


def job(name: str) -> table.Job:
    return table.Job(name, (), (), "teddy", "<it>", "", "", {})


def test_a_bad_concept_costs_the_index_its_own_row(tmp_path: Path) -> None:
    torn = picture(size=(200, 200))
    texts = {
        "good": {},
        "text": {"training": '{"loss": "x"}'},
        "digits": {"training": f'{{"loss": {HUGE}}}'},
        "large": {"training": '{"loss": 1e300}'},
        "torn": {"ssmd_cover_images": shows(torn[: len(torn) // 2])},
        "junk": {"ssmd_cover_images": shows(b"\xff\xd8\xff" + b"junk")},
        "huge": {"ssmd_cover_images": shows(claiming(60_000, 60_000))},
    }
    for name, changed in texts.items():
        noted(tmp_path / f"{name}.safetensors", **changed)
    for left in ("sheet-music.png", "sheet-9.png"):
        (tmp_path / left).write_bytes(b"")
    (tmp_path / "sheet-7.png").mkdir()  # what cannot be cleared away is no reason either
    entries = {name: index.entry(tmp_path, job(name), index.KEPT) for name in texts}
    index.write(tmp_path, list(entries.values()))
    rows = {row["name"]: row for row in json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {name: index.FAILED if name in ("junk", "huge") else index.KEPT for name in texts}
    assert rows["good"]["fault"] == "" and rows["good"]["loss"] == 0.5 and rows["large"]["loss"] == 1e300
    assert "its preview is not a JPEG picture" in rows["huge"]["fault"] and "its preview is not" in rows["junk"]["fault"]
    assert rows["torn"]["fault"] == "Its preview cannot be decoded, so it has no picture here."
    for name in ("text", "digits"):
        assert rows[name]["loss"] is None
        assert rows[name]["fault"] == "Its file does not record the loss that its training ended with."
    assert (tmp_path / "sheet-music.png").exists() and not (tmp_path / "sheet-9.png").exists()
    page = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in texts) and "5 kept, 2 failed" in page
    with Image.open(tmp_path / "sheet-1.png") as sheet:
        assert sheet.size == (5 * index.TILE, index.TILE + 2 * index.LINE)
        tiles = [sheet.crop((i * index.TILE, 0, (i + 1) * index.TILE, index.TILE)) for i in range(5)]
    assert [len(tile.getcolors(10**5)) > 50 for tile in tiles] == [True, True, True, True, False]


def test_a_concept_that_goes_away_or_a_name_that_is_no_text_costs_no_index(tmp_path: Path) -> None:
    noted(tmp_path / "gone.safetensors")
    entry = index.entry(tmp_path, job("gone"), index.TRAINED)
    (tmp_path / "gone.safetensors").unlink()
    failed = index.entry(tmp_path, job("failed"), index.FAILED, fault="There is no \udcff.png.")
    index.write(tmp_path, [entry, failed])
    assert json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))[1]["fault"] == "There is no \udcff.png."


# ---- tables of jobs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "bear").mkdir()
    (tmp_path / "bear" / "a.png").write_bytes(picture("PNG", "RGBA"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "name," * 200 + "\nbear\n", "has 201 columns, more than the limit of 100"),
        ("t.csv", "name\n" + "bear\n" * 10_001, "has more than 10000 concepts"),
        ("t.csv", "name\n" + "x" * 2**21, "more than the limit of 2097152"),
        ("t.csv", 'name\n"' + "x" * 200_000, "cannot be read"),
        ("t.json", " " * 2**21 + "[]", "more than the limit of 2097152"),
        ("t.json", "[" + "{}," * 10_000 + "{}]", "has more than 10000 concepts"),
        ("t.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_a_table_has_its_limits(pictures: Path, name: str, content: str, said: str) -> None:
    (pictures / name).write_text(content, encoding="utf-8")
    with pytest.raises(PerfusionError, match=said) as refused:
        table.read(pictures / name)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("digits", [HUGE, "9" * 5000, "1e999", "0.5"])
def test_a_number_of_a_table_is_a_number_whatever_its_length(pictures: Path, digits: str) -> None:
    (pictures / "t.json").write_text(f'[{{"name": "bear", "superclass": "teddy", "flip": {digits}}}]', encoding="utf-8")
    ((found,), faults) = table.read(pictures / "t.json")
    assert not faults and isinstance(found.settings["flip"], str | float)
    assert float(found.settings["flip"]) in (0.5, math.inf)  # the node's bounds refuse infinity


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"flip": [1]}, "bear: flip should be text or a number, not a list."),
        ({"flip": {"a": 1}}, "bear: flip should be text or a number, not an object."),
        ({"superclass": "\ud800"}, "bear: superclass should be text or a number, not half a character (an unpaired surrogate)."),
        ({"\udfff\x1b": 1}, r"bear: \udfff\x1b should be text or a number, not half a character (an unpaired surrogate)."),
        ({"pictures": "a\0b"}, "bear: its folder of pictures or masks cannot be read; choose another one."),
        ({"masks": "m" * 5000}, "bear: its folder of pictures or masks cannot be read; choose another one."),
        ({"name": ["\x1b"]}, "?: name should be text or a number, not a list."),
    ],
)
def test_a_row_holds_texts_and_numbers(pictures: Path, row: dict, said: str) -> None:
    (pictures / "t.json").write_text(json.dumps([{"name": "bear", "superclass": "teddy", **row}]), encoding="utf-8")
    assert table.read(pictures / "t.json") == ([], [said])


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("masks", ["", "none"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))), PIXELS), "a.png cannot be opened as an image"),
        (png(60_000, 60_000, PIXELS), "a.png cannot be opened as an image"),
        (png(8193, 8193, PIXELS), "a.png is 8193 × 8193 pixels, more than the limit of 67 million"),
        (claiming(9000, 9000), "a.png is 9000 × 9000 pixels"),
        (POSTSCRIPT, "a.png cannot be opened as an image"),
        (picture("GIF"), "a.png cannot be opened as an image"),
    ],
    ids=told,
)
def test_a_picture_to_train_from_is_looked_at_first(pictures: Path, content: bytes, said: str, masks: str) -> None:
    (pictures / "bear" / "a.png").write_bytes(content)
    (pictures / "t.csv").write_text(f"name,masks\nbear,{masks}\n", encoding="utf-8")
    _, (fault,) = table.read(pictures / "t.csv")
    assert fault.startswith(f"bear: {said}") and fault.endswith(".")


def test_a_mask_is_looked_at_first(pictures: Path) -> None:
    (pictures / "bear" / "a-mask.png").write_bytes(png(60_000, 60_000, PIXELS))
    (pictures / "t.csv").write_text("name\nbear\n", encoding="utf-8")
    assert table.read(pictures / "t.csv")[1] == ["bear: a-mask.png cannot be opened as an image; remove it, or save it again."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_what_is_no_file_is_no_picture_and_no_table(pictures: Path) -> None:
    """Reading a named pipe would wait for ever."""
    os.mkfifo(pictures / "bear" / "b.png")
    os.mkfifo(pictures / "bear" / "concept.json")
    (pictures / "t.csv").write_text("name\nbear\n", encoding="utf-8")
    ((found,), faults) = table.read(pictures / "t.csv")
    assert not faults and [Path(each).name for each in found.pictures] == ["a.png"]
    with pytest.raises(PerfusionError, match="there is no such file"):
        table.told_in(pictures / "bear")


# ---- captions --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * (captions.MAX_BYTES + 1), "more than the limit of 8388608 for captions"),
        (b"a cat\n" * (captions.MOST + 1), "more than 100000 lines of captions"),
        (b"\n" * (captions.MOST + 1), "more than 100000 lines of captions"),
        (b"x" * (captions.LONGEST + 1), "has 2001 characters, more than the limit of 2000"),
        (b"a cat\n\xff", "not a readable UTF-8 text file"),
    ],
    ids=told,
)
def test_captions_have_their_limits(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(PerfusionError, match=said):
        captions.in_file(tmp_path, "own.txt")


def test_captions_lie_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for place in ("own.txt", "in/own.txt", "in/sub/own.txt"):
        (tmp_path / place).write_text(" a cat \r\n\n a\u2028dog", encoding="utf-8")
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "own.txt")
    assert captions.in_file(tmp_path / "in", "own.txt") == captions.in_file(tmp_path / "in", "sub/own.txt") == ["a cat", "a", "dog"]
    for name in ("../own.txt", str(tmp_path / "own.txt"), "link.txt", "sub", "", ".", "..", "a\0b", "missing"):
        with pytest.raises(PerfusionError, match="There is no file"):
            captions.in_file(tmp_path / "in", name)


def test_on_windows_a_name_is_refused_for_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = r"\\host\share\a", "//host/share/a", r"\\?\C:\a", r"\\.\pipe\a", "C:a", r"C:\a", r"\a", "/a", r"..\a", "a/../../b"
    devices = "NUL", "con.txt", "a/COM1", r"a\lpt9.x.y", "aux ", "com¹", "CONIN$", "nul:x"
    assert not any(stays_inside(name, windows=True) for name in (*away, *devices, "a\0"))
    assert all(stays_inside(name, windows=True) for name in ("a", r"a\b.txt", "a/b", "console.txt", "com10", "common", "null.txt"))
    assert not any(stays_inside(name, windows=False) for name in ("/a", "//host/a", "../a", "a/../b", "a\0"))
    assert all(stays_inside(name, windows=False) for name in ("a", "a/b", r"\\host", "a: b.txt", "nul"))

    def touched(*_: object) -> None:
        raise AssertionError("the file system was asked")

    for call in ("stat", "resolve", "open"):
        monkeypatch.setattr(Path, call, touched)
    with pytest.raises(PerfusionError, match="There is no file"):
        captions.in_file(tmp_path, "//host/share/own.txt")


def test_a_concept_keeps_what_it_was_given_beside_its_preview(tmp_path: Path) -> None:
    """The pack's own files are read as before."""
    made = replace(concept(picture(size=(256, 256)), loss=0.25, lock="local", seed=2**64 - 1), details={"author": "Ann"})
    made.save(tmp_path / "a.safetensors")
    found = Concept.load(tmp_path / "a.safetensors")
    assert (found.training, found.preview, found.details) == (made.training, made.preview, made.details)
