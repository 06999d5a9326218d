"""The index of a finished fleet: a table as JSON and as Markdown, and contact sheets of the concepts' pictures."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from perfusion_core import PerfusionError
from perfusion_core.concept import Concept
from perfusion_core.printable import printable
from perfusion_core.safe_files import write_bytes
from perfusion_fleet.pictures import opened
from perfusion_fleet.table import Job

TRAINED, KEPT, FAILED = "trained", "kept", "failed"
COLUMNS, ON_SHEET = 8, 96
"""Pictures per row of a sheet, and per sheet."""
TILE, LINE = 128, 16
"""Side of a picture and height of a line of text, in pixels."""


@dataclass(frozen=True)
class Entry:
    """One line of the index.

    Attributes:
        state: TRAINED in this run, KEPT from an earlier run, or FAILED.
        loss: the mean over the last steps; None if unknown.
        seconds: duration of the training; 0 if it was not trained in this run.
        tries: number of workers that the job was given to; 0 if it was not trained in this run.
        fault: why it failed, or what is missing from its file, as a sentence.
    """

    name: str
    state: str
    trigger: str
    superclass: str
    loss: float | None = None
    seconds: float = 0.0
    tries: int = 0
    fault: str = ""


def file_of(out: Path, name: str) -> Path:
    """Return the path at which a concept is saved."""
    return out / f"{name}.safetensors"


def entry(out: Path, job: Job, state: str, seconds: float = 0.0, tries: int = 0, fault: str = "") -> Entry:
    """Return the index entry of a job. The loss is read from the concept's file; a job whose file cannot be read has failed."""
    loss = None
    if state != FAILED:
        try:
            concept = Concept.load(file_of(out, job.name))
            loss, fault = concept.training.get("loss"), lacking(concept)
        except PerfusionError as error:
            state, fault = FAILED, f"{error} Delete it to train the concept again."
    return Entry(job.name, state, job.trigger, job.superclass, loss, round(seconds, 1), tries, fault)


def lacking(concept: Concept) -> str:
    """Return what a row cannot show about an otherwise usable concept: a sentence or two, or an empty string."""
    said = [] if "loss" in concept.training else ["Its file does not record the loss that its training ended with."]
    try:
        tile(concept)
    except PerfusionError:
        said.append("Its preview cannot be decoded, so it has no picture here.")
    return " ".join(said)


def tile(concept: Concept) -> Image.Image | None:
    """Return a concept's preview as RGB with TILE pixels per side, or None; raise PerfusionError if it cannot be decoded."""
    if not concept.preview:
        return None
    with opened(io.BytesIO(concept.preview), f"The preview of {concept.trigger}") as image:
        return image.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)


def write(out: Path, entries: Sequence[Entry]) -> None:
    """Write index.json, index.md and the sheets into `out`; raise PerfusionError if they cannot be written."""
    write_bytes(out / "index.json", encoded(json.dumps([asdict(each) for each in entries], indent=1, ensure_ascii=False)))
    done = [each for each in entries if each.state != FAILED]
    sheets = [done[i : i + ON_SHEET] for i in range(0, len(done), ON_SHEET)]
    names = [f"sheet-{i + 1}.png" for i in range(len(sheets))]
    for old in out.glob("sheet-*.png"):
        if re.fullmatch(r"sheet-\d+\.png", old.name) and old.name not in names:
            with contextlib.suppress(OSError):  # a leftover sheet is no reason to lose the index
                old.unlink()
    for name, shown in zip(names, sheets, strict=True):
        write_bytes(out / name, sheet(out, shown))
    write_bytes(out / "index.md", encoded("\n".join(page(entries, names))))


def encoded(text: str) -> bytes:
    """Encode a text as UTF-8; what cannot be encoded, such as invalid bytes of a file name, is written as an escape."""
    return text.encode(errors="backslashreplace")


def page(entries: Sequence[Entry], sheets: Sequence[str]) -> Iterator[str]:
    """Yield the lines of index.md."""
    counts = [f"{sum(each.state == state for each in entries)} {state}" for state in (TRAINED, KEPT, FAILED)]
    yield from ["# Concepts", "", f"{len(entries)} concepts: {', '.join(counts)}.", ""]
    yield from ["| concept | trigger | superclass | state | loss | seconds | workers | |", "|---|---|---|---|---|---|---|---|"]
    for each in entries:
        loss, fault = "" if each.loss is None else f"{each.loss:.4g}", each.fault.replace("|", "\\|")
        cells = each.name, f"`{each.trigger}`", each.superclass, each.state, loss, f"{each.seconds:.0f}", str(each.tries), fault
        yield f"| {' | '.join(map(printable, cells))} |"
    yield ""
    for name in sheets:
        yield from [f"![Pictures of the concepts]({name})", ""]


def sheet(out: Path, shown: Sequence[Entry]) -> bytes:
    """Return a PNG of the concepts' preview pictures, with name and loss below each."""
    columns, high = min(COLUMNS, len(shown)), TILE + 2 * LINE
    whole = Image.new("RGB", (columns * TILE, -(-len(shown) // columns) * high), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for i, each in enumerate(shown):
        left, top = i % columns * TILE, i // columns * high
        with contextlib.suppress(PerfusionError):  # its row says so
            picture = tile(Concept.load(file_of(out, each.name)))
            if picture:
                whole.paste(picture, (left, top))
        pen.text((left + 3, top + TILE + 1), each.name[:20], "black", font)
        pen.text((left + 3, top + TILE + LINE), "" if each.loss is None else f"loss {each.loss:.4g}", "gray", font)
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()
