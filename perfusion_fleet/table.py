"""What a fleet is to teach: a folder of concepts, or a table of them, read and checked whole."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from perfusion_core import PerfusionError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MASK = "-mask"
"""What the name of a picture's mask ends in: teddy-1-mask.png is that of teddy-1.jpg."""
NO_MASKS = "none"
"""Written for masks: the whole of each picture counts."""
TOLD = "concept.json"
NAME = re.compile(r"[\w-]{1,64}")
OWN = ("name", "pictures", "masks", "superclass", "trigger", "author", "license")
"""Columns that are no settings."""


@dataclass(frozen=True)
class Job:
    """One concept that is to be taught.

    Attributes:
        name: of its file; letters, digits, - and _.
        pictures: files.
        masks: of each picture the file of its mask, white on the thing, or "" for the picture's own alpha; empty for no masks.
        superclass, trigger, author, license: as the nodes have them.
        settings: widgets of Train Concept that differ from how the node comes, as they were written: a CSV table gives texts.
    """

    name: str
    pictures: tuple[str, ...]
    masks: tuple[str, ...]
    superclass: str
    trigger: str
    author: str
    license: str
    settings: Mapping[str, object]


def read(path: Path) -> tuple[list[Job], list[str]]:
    """The concepts of a folder or of a .csv or .json table, and a sentence for each thing that is wrong with them.

    Raises:
        PerfusionError: it cannot be read at all, or names no concept.
    """
    rows = list(in_folder(path) if path.is_dir() else in_table(path))
    if not rows:
        raise PerfusionError(
            f"There is no concept in {path}; give a folder with a sub-folder of pictures for each, or a .csv or .json table."
        )
    jobs, faults, base = [], [], path if path.is_dir() else path.parent
    for row in rows:
        try:
            own = {**told_in(base / str(row["name"])), "name": row["name"]} if path.is_dir() else {}
            jobs.append(job_of({**row, **own}, base))
        except PerfusionError as error:
            faults.append(f"{row.get('name') or 'A concept without a name'}: {error}")
    # Systems differ in whether upper and lower case are one file.
    names = Counter(str(row.get("name", "")).casefold() for row in rows)
    faults += [
        f"{name}: {count} concepts have this name; give each its own." for name, count in names.items() if name and count > 1
    ]
    return jobs, faults


def in_folder(path: Path) -> Iterator[dict[str, object]]:
    """The row of each sub-folder: its name, and what concept.json in the folder itself says of all of them."""
    common = told_in(path)
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield {**common, "pictures": folder.name, "name": folder.name}


def told_in(folder: Path) -> dict[str, object]:
    """What concept.json says in a folder; nothing where there is none."""
    path = folder / TOLD
    told = parsed(path) if path.exists() else {}
    if not isinstance(told, dict):
        raise PerfusionError(f'{path} should hold one JSON object of columns, such as {{"superclass": "teddy"}}.')
    return told


def in_table(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a table, without what is empty in them."""
    if path.suffix.lower() == ".csv":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from error
        rows: object = list(csv.DictReader(lines, restkey="a column without a name"))
    elif path.suffix.lower() == ".json":
        rows = parsed(path)
    else:
        raise PerfusionError(f"Concepts come in a folder or in a .csv or .json table; {path} is none of them.")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise PerfusionError(f"{path} should hold a JSON list of objects, one for each concept.")
    for row in rows:
        yield {name: value for name, value in row.items() if value not in (None, "")}


def parsed(path: Path) -> object:
    """What a JSON file holds; raises PerfusionError where it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> PerfusionError:
    """The sentence for a file that cannot be read."""
    return PerfusionError(f"{path} cannot be read: {error}.")


def job_of(row: Mapping[str, object], base: Path) -> Job:
    """The concept of a row, whose paths are from `base`; raises PerfusionError for what is wrong with it."""
    text = {name: str(row.get(name, "")).strip() for name in OWN}
    if not NAME.fullmatch(text["name"]):
        raise PerfusionError("a concept's name is of letters, digits, - and _, and at most 64 of them; give it another one.")
    folder = (base / (text["pictures"] or text["name"])).resolve()
    pictures = [file for file in images(folder) if not file.stem.endswith(MASK)]
    if not pictures:
        raise PerfusionError(f"there is no picture in {folder}; put some there ({', '.join(sorted(PICTURES))}).")
    return Job(
        name=text["name"],
        pictures=tuple(str(file) for file in pictures),
        masks=() if text["masks"] == NO_MASKS else masks_of(pictures, base / text["masks"] if text["masks"] else folder),
        superclass=text["superclass"],
        trigger=text["trigger"] or f"<{text['name']}>",
        author=text["author"],
        license=text["license"],
        settings={name: value for name, value in row.items() if name not in OWN},
    )


def images(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; none where there is no such folder."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES and not file.name.startswith("."))


def masks_of(pictures: list[Path], folder: Path) -> tuple[str, ...]:
    """The mask of each picture, as in `Job`: a file of the picture's name and -mask in `folder`, or the picture's own alpha.

    Raises:
        PerfusionError: a picture cannot be opened, or some have a mask and others none.
    """
    files = {file.stem.removesuffix(MASK): str(file) for file in images(folder) if file not in pictures}
    own = [cut_out(picture) for picture in pictures]
    found = [bool(files.get(picture.stem)) or alpha for picture, alpha in zip(pictures, own, strict=True)]
    if any(found) and not all(found):
        without = pictures[found.index(False)].name
        raise PerfusionError(
            f"{sum(found)} of {len(found)} pictures have a mask, and {without} has none; give each one, or write {NO_MASKS} for "
            "masks."
        )
    return tuple(files.get(picture.stem, "") for picture in pictures) if all(found) else ()


def cut_out(picture: Path) -> bool:
    """Whether a picture's alpha says where the thing is; raises PerfusionError where it is none that can be opened."""
    try:
        with Image.open(picture) as image:
            return "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PerfusionError(f"{picture.name} is no picture that can be opened; take it out, or save it anew.") from error
