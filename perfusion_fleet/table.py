"""Reads and checks the concepts that a fleet is to train, from a folder or from a table."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perfusion_core import PerfusionError
from perfusion_core.printable import printable
from perfusion_core.safe_files import read_bytes, shown
from perfusion_fleet.pictures import opened

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MASK = "-mask"
"""Suffix of a mask's file name: teddy-1-mask.png is the mask of teddy-1.jpg."""
NONE = "none"
"""In the masks column: train on whole pictures, without masks. In the captions column: do not use captions."""
CAPTION = ".txt"
"""Suffix of a caption's file: teddy-1.txt is the caption of teddy-1.jpg."""
LONGEST = 2**14
"""Maximum size of a caption's file in bytes."""
TOLD = "concept.json"
NAME = re.compile(r"[\w-]{1,64}")
MAX_BYTES, MAX_CONCEPTS, MAX_COLUMNS = 2 * 2**20, 10_000, 100
"""Limits on the size of a table or of a concept.json, on the number of its concepts and on that of its columns."""
NO_VALUES = {list: "a list", dict: "an object", type(None): "null"}
HALF = re.compile("[\ud800-\udfff]")
"""Surrogates: JSON can contain them, but files and consoles cannot."""
OWN = ("name", "pictures", "masks", "captions", "superclass", "trigger", "author", "license")
"""Columns that are not settings of Train Concept."""


@dataclass(frozen=True)
class Job:
    """One concept to train.

    Attributes:
        name: of its file; letters, digits, - and _.
        pictures: paths of the picture files.
        masks: for each picture the path of its mask, white on the object, or "" for the picture's own alpha; empty for no masks.
        superclass, trigger, author, license: as in the nodes.
        settings: given widget values of Train Concept, unconverted: values from a CSV table are text. The node's defaults apply
            to all others.
        captions: for each picture its caption; empty for none.
    """

    name: str
    pictures: tuple[str, ...]
    masks: tuple[str, ...]
    superclass: str
    trigger: str
    author: str
    license: str
    settings: Mapping[str, object]
    captions: tuple[str, ...] = ()


def read(path: Path) -> tuple[list[Job], list[str]]:
    """Return the concepts of a folder or of a .csv or .json table, and a sentence for each fault in them.

    Raises:
        PerfusionError: it cannot be read at all or contains no concept.
    """
    rows = list(in_folder(path) if path.is_dir() else in_table(path))
    if not rows:
        raise PerfusionError(
            f"There is no concept in {brief(path)}; provide a folder with a subfolder of pictures for each concept, or a .csv or "
            ".json table."
        )
    jobs, faults, base = [], [], path if path.is_dir() else path.parent
    for row in rows:
        try:
            own = {**told_in(base / str(row["name"])), "name": row["name"]} if path.is_dir() else {}
            jobs.append(job_of({**row, **own}, base))
        except PerfusionError as error:
            faults.append(f"{named(row) or 'A concept without a name'}: {error}")
    # File names are case-insensitive on some systems.
    names = Counter(named(row).casefold() for row in rows)
    faults += [
        f"{name}: {count} concepts have this name; give each its own." for name, count in names.items() if name and count > 1
    ]
    return jobs, faults


def named(row: Mapping[str, object]) -> str:
    """Return a row's name for use in a message; empty if it has none."""
    name = row.get("name", "")
    return brief(name if isinstance(name, str | int | float) else "?", 64)


def brief(text: object, most: int = 200) -> str:
    """Return a text for use in a message: one line, without console control characters, at most `most` characters."""
    return printable(str(text)[:most])[:most]


def in_folder(path: Path) -> Iterator[dict[str, object]]:
    """Yield a row for each subfolder: its name, and the columns that concept.json in the folder itself sets for all of them."""
    common = told_in(path)
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield {**common, "pictures": folder.name, "name": folder.name}


def told_in(folder: Path) -> dict[str, object]:
    """Return the columns in a folder's concept.json, or nothing if there is no such file.

    Raises:
        PerfusionError: the file cannot be read or does not contain a JSON object.
    """
    path = folder / TOLD
    told = parsed(path) if path.exists() else {}
    if not isinstance(told, dict):
        raise PerfusionError(f'{brief(path)} should contain one JSON object of columns, such as {{"superclass": "teddy"}}.')
    return told


def in_table(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a table without their empty cells; raise PerfusionError if it cannot be read or is of another format."""
    if path.suffix.lower() == ".csv":
        rows: object = list(in_csv(path))
    elif path.suffix.lower() == ".json":
        rows = parsed(path)
    else:
        raise PerfusionError(f"Concepts must be in a folder or in a .csv or .json table; {brief(path)} is neither.")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise PerfusionError(f"{brief(path)} should contain a JSON list of objects, one for each concept.")
    if len(rows) > MAX_CONCEPTS:
        raise too_many(path)
    for row in rows:
        yield {name: value for name, value in row.items() if value not in (None, "")}


def in_csv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV table without their empty cells; raise PerfusionError if it cannot be read."""
    try:
        lines = csv.reader(io.StringIO(read_bytes(path, MAX_BYTES).decode("utf-8-sig"), newline=""))
        columns = next(lines, [])
        if len(columns) > MAX_COLUMNS:
            raise PerfusionError(f"{brief(path)} has {len(columns)} columns, more than the limit of {MAX_COLUMNS} for a table.")
        for i, line in enumerate(filter(None, lines)):
            if i == MAX_CONCEPTS:
                raise too_many(path)
            more = ["a column without a name"] * (len(line) - len(columns))
            yield {name: value for name, value in zip([*columns, *more], line, strict=False) if value}
    except (UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error


def parsed(path: Path) -> object:
    """Return the content of a JSON file; raise PerfusionError if it cannot be read or parsed."""
    content = read_bytes(path, MAX_BYTES)
    try:
        # Integers with more digits than any setting needs stay text: Python refuses to convert thousands of digits.
        return json.loads(content.decode(), parse_int=lambda digits: int(digits) if len(digits) < 50 else digits)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def too_many(path: Path) -> PerfusionError:
    """Return the error for a table of more concepts than are trained at once."""
    return PerfusionError(f"{brief(path)} has more than {MAX_CONCEPTS} concepts; split it into several tables.")


def unreadable(path: Path, error: Exception) -> PerfusionError:
    """Return the error for a file that cannot be read."""
    return PerfusionError(f"{brief(path)} cannot be read: {error}.")


def job_of(row: Mapping[str, object], base: Path) -> Job:
    """Return the job of a row, whose paths are relative to `base`; raise PerfusionError if the row is invalid."""
    for column, value in row.items():
        came = NO_VALUES.get(type(value)) or (HALF.search(f"{column}{value}") and "half a character (an unpaired surrogate)")
        if came:
            raise PerfusionError(f"{brief(column, 80)} should be text or a number, not {came}.")
    text = {name: str(row.get(name, "")).strip() for name in OWN}
    if not NAME.fullmatch(text["name"]):
        raise PerfusionError(
            "a concept's name must consist of 1 to 64 letters, digits, hyphens and underscores; choose another one."
        )
    try:
        # Resolved, because workers may run in another folder, and so that the two can be compared.
        folder = (base / (text["pictures"] or text["name"])).resolve()
        masked = (base / text["masks"]).resolve() if text["masks"] else folder
        pictures = [file for file in images(folder) if not file.stem.endswith(MASK)]
        if not pictures:
            raise PerfusionError(f"there are no pictures in {brief(folder)}; put some there ({', '.join(sorted(PICTURES))}).")
        for picture in pictures:
            check(picture)
        captions = () if text["captions"] == NONE else captions_of(pictures, text["captions"])
        masks = () if text["masks"] == NONE else masks_of(pictures, masked)
    except PerfusionError:
        raise
    except (OSError, ValueError) as error:  # such as a name that is too long or contains an invalid character
        raise PerfusionError("its folder of pictures or masks cannot be read; choose another one.") from error
    return Job(
        name=text["name"],
        pictures=tuple(str(file) for file in pictures),
        masks=masks,
        superclass=text["superclass"],
        trigger=text["trigger"] or f"<{text['name']}>",
        author=text["author"],
        license=text["license"],
        settings={name: value for name, value in row.items() if name not in OWN},
        captions=captions,
    )


def images(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted by name; empty if there is no such folder."""
    files = (file for file in folder.glob("*") if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    return sorted(file for file in files if file.is_file())


def masks_of(pictures: list[Path], folder: Path) -> tuple[str, ...]:
    """Return the mask of each picture, as in `Job`: a file in `folder` with the picture's name, or the picture's own alpha.

    The file's name may end in `-mask`, and must if it lies beside the pictures. The result is empty if no picture has a mask.

    Raises:
        PerfusionError: a picture cannot be opened, or only some of the pictures have a mask.
    """
    taught = set(pictures)
    files = {file.stem.removesuffix(MASK): file for file in images(folder) if file not in taught}
    own = [cut_out(picture) for picture in pictures]
    found = [bool(files.get(picture.stem)) or alpha for picture, alpha in zip(pictures, own, strict=True)]
    if any(found) and not all(found):
        without = shown(pictures[found.index(False)])
        raise PerfusionError(
            f"{sum(found)} of {len(found)} pictures have a mask, but {without} has none; give each picture one, or set masks to "
            f"{NONE}."
        )
    masks = [files.get(picture.stem) for picture in pictures] if all(found) else []
    for mask in filter(None, masks):
        check(mask)
    return tuple(str(mask or "") for mask in masks)


def captions_of(pictures: list[Path], told: str) -> tuple[str, ...]:
    """Return the caption of each picture, from the text file of its name beside it, on one line; empty if no picture has one.

    Raises:
        PerfusionError: `told`, the value of the column, is not empty; a file is not text; or only some of the pictures have one.
    """
    if told:
        raise PerfusionError(
            "captions must be text files beside the pictures, with the same names; leave the captions column empty to use "
            f"them, or set it to {NONE} to ignore them."
        )
    files = [picture.with_suffix(CAPTION) for picture in pictures]
    there = [file.is_file() for file in files]
    if not any(there):
        return ()
    if not all(there):
        without = shown(pictures[there.index(False)])
        raise PerfusionError(
            f"{sum(there)} of {len(there)} pictures have a caption, but {without} has none; give each picture one, or set captions "
            f"to {NONE}."
        )
    try:
        return tuple(" ".join(read_bytes(file, LONGEST).decode("utf-8-sig").split()) for file in files)
    except UnicodeDecodeError as error:
        raise PerfusionError("a caption is not UTF-8 text; save it as plain text.") from error


def check(picture: Path) -> None:
    """Raise PerfusionError unless the file's header is that of a picture that can be used for training."""
    with opened(picture, shown(picture)):
        pass


def cut_out(picture: Path) -> bool:
    """Return whether a picture's alpha marks the object: whether any pixel is transparent.

    Raises:
        PerfusionError: the picture cannot be opened.
    """
    with opened(picture, shown(picture)) as image:
        # Of a transparent colour, all versions of the host make an alpha channel only in palettes.
        transparent = "A" in image.getbands() or (image.mode == "P" and "transparency" in image.info)
        return transparent and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
