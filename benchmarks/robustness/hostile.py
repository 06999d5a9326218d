"""Read thousands of broken or malicious files, as from strangers.

    python -m benchmarks.robustness.hostile [--cases N] [--seed N]

Each case is a valid file of one of the kinds that the pack reads, damaged in one way. It must either be read or be refused in one
clear sentence; it must not run code or write anything, and memory must stay bounded. Then a server imports damaged pickles and
must keep answering other requests. Writes `results/hostile.md`; the exit status is 1 if any of that fails.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.lab import RESULTS
from benchmarks.memory import Peak
from benchmarks.robustness import hostile_pickles as pickles
from benchmarks.robustness import hostile_pictures as pictures
from benchmarks.robustness import importing
from benchmarks.robustness.hostile_pickles import LAYERS, MARK, WIDTH
from benchmarks.robustness.hostile_pictures import Damage
from perfusion_core import PerfusionError, foreign_formats, safe_files
from perfusion_core.concept import Concept
from perfusion_core.covariance import Covariance, Estimate
from perfusion_core.gated_edit import EXACT
from perfusion_core.quantization import INT8, UINT4
from perfusion_core.stack import edit_of
from perfusion_core.training.state import TrainingState
from perfusion_fleet.table import cut_out

NAMES = ("teddy", "テディ", "a b", "..", "\u202egnp", "line\nbreak", "\x1b[31mred", "x" * 200, "%s{0}", "<img src=x>")
LONGEST = 500
"""Limit on the characters of an error message."""
MOST_MB, MOST_SECONDS = 64, 1
"""Limits on the memory that one case takes beyond its file's own size, and on its CPU time."""
HARMFUL = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove", "os.rename")


# ---- valid files ---------------------------------------------------------------------------------------------------------------


def concept(keys: bool = False) -> Concept:
    """Return a small concept."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(WIDTH, generator=generator)
    values = {layer: torch.randn(rows, generator=generator) for layer, rows in LAYERS.items()}
    word = {"clip_l": torch.randn(1, WIDTH, generator=generator)}
    places = target, target.clone(), target.clone()
    return Concept("<it>", "teddy", "sd1", word, *places, values, dict(values) if keys else {}, training={"steps": 4})


def saved(save: Callable[[Path], None]) -> bytes:
    """Return the bytes that `save` writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def estimate() -> Covariance:
    """Return a small covariance."""
    made = Estimate(WIDTH)
    made.add(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)))
    return made.finish("of-this")


def training_state() -> bytes:
    """Return the bytes of a training checkpoint."""
    one = concept()
    return safetensors.torch.save(
        TrainingState(dict(one.word), dict(one.values), {}, one.target_input, one.superclass_encoding, [0.5]).tensors()
    )


def use(found: Concept) -> None:
    """Build the edit of a concept, as Apply Concept does."""
    edit_of((found,), EXACT)


def of_text(path: Path) -> None:
    """Read a concept from text, as Concept in Workflow does."""
    use(Concept.from_text(path.read_bytes().decode("latin-1"), "The concept in this workflow"))


@dataclass(frozen=True)
class Kind:
    """A kind of file: the bytes of a valid one, its reader, and its own damages instead of those of concepts."""

    good: bytes
    read: Callable[[Path], object]
    suffix: str = "safetensors"
    damages: tuple[Damage, ...] = ()


def kinds() -> dict[str, Kind]:
    """Return all kinds of files that the pack reads."""

    def taken(path: Path) -> None:
        foreign_formats.read(path, LAYERS, WIDTH, WIDTH)

    def taken_from_a_checkpoint(path: Path) -> None:
        width = pickles.CHENDARYENS_WIDTH
        foreign_formats.read(path, pickles.CHENDARYENS_LAYERS, width, width)

    def resumed(path: Path) -> None:
        TrainingState.from_tensors(safe_files.read(path, 2**24)[0])

    def loaded(path: Path) -> None:
        use(Concept.load(path))

    whole = concept(keys=True)
    partly = replace(whole, keys={layer: whole.keys[layer] for layer in list(LAYERS)[1:]}, keys_at_word=True)
    half, eight, four, keys = (
        saved(lambda path, one=one, kind=kind: one.save(path, kind))
        for one, kind in ((concept(), torch.float16), (whole, INT8), (partly, UINT4), (partly, torch.float32))
    )
    noted, picture = pictures.with_picture(half), pictures.picture("PNG", "RGBA")
    table = f"name,pictures,superclass\none,{pictures.pictures()},teddy\n".encode()
    return {
        "concept": Kind(half, loaded),
        "concept of eight bits": Kind(eight, loaded),
        "concept of four bits": Kind(four, loaded),
        "concept with keys": Kind(keys, loaded),
        "concept in a workflow": Kind(base64.b64encode(half), of_text),
        "covariance": Kind(saved(estimate().save), Covariance.load),
        "training checkpoint": Kind(training_state(), resumed),
        "concept in the fleet's index": Kind(noted, pictures.in_index, damages=(*TENSORS, *NOTES, *NOTES, *NOTES)),
        "concept in the page's search": Kind(noted, pictures.searched, damages=(header, pictures.words, pictures.words)),
        "table in JSON": Kind(json.dumps(pictures.rows()).encode(), pictures.in_table, "json", (pictures.json_table,) * 4),
        "table in CSV": Kind(table, pictures.in_table, "csv", (pictures.csv_table,) * 4),
        "picture of a table": Kind(picture, cut_out, "png", (pictures.training_picture,) * 8),
        "captions": Kind(b"a cat\na dog\n", pictures.in_captions, "txt", (pictures.caption_file,) * 4),
        "perfusion-pytorch's": Kind(pickles.pickled(pickles.theirs()), taken, "pt", pickles.DAMAGES),
        "ChenDarYen's": Kind(pickles.CHENDARYENS.read_bytes(), taken_from_a_checkpoint, "pt", pickles.DAMAGES),
    }


# ---- damages -------------------------------------------------------------------------------------------------------------------


def bits(rng: random.Random, good: bytes) -> bytes:
    """Flip some bits."""
    made = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def cut(rng: random.Random, good: bytes) -> bytes:
    """Truncate the file."""
    return good[: rng.randrange(len(good))]


def longer(rng: random.Random, good: bytes) -> bytes:
    """Append or prepend random bytes."""
    more = rng.randbytes(rng.choice((1, 8, 1000)))
    return good + more if rng.random() < 0.7 else more + good


def noise(rng: random.Random, good: bytes) -> bytes:
    """Replace the whole content."""
    return rng.choice((b"", b"\0" * 100, rng.randbytes(rng.randrange(1, 3000)), b"PK\x03\x04" + rng.randbytes(200), b"\x89PNG\r\n"))


def length(rng: random.Random, good: bytes) -> bytes:
    """Change the length of the header."""
    true = struct.unpack("<Q", good[:8])[0]
    lies = (0, 1, 2**20, 2**20 + 1, 2**31, 2**40, 2**63, 2**64 - 1, true + 1, max(true - 1, 0), len(good))
    return struct.pack("<Q", rng.choice(lies)) + good[8:]


HOSTILE_TEXTS = (
    "",
    " ",
    "\0",
    "../../../../x",
    "C:\\x",
    "\u202e",
    "'); DROP",
    "<script>alert(1)</script>",
    "%s%n",
    "9" * 400,
    "NaN",
)
HOSTILE_VALUES = (None, True, 1, -1, 1e308, [], {}, [[]], "x" * 100_000, ["a"] * 1000, *HOSTILE_TEXTS)


def header(rng: random.Random, good: bytes) -> bytes:
    """Change or invent entries of the header."""
    (true,) = struct.unpack("<Q", good[:8])
    told, body = json.loads(good[8 : 8 + true]), good[8 + true :]
    tensors = [name for name in told if name != "__metadata__"]
    name = rng.choice(tensors)
    metadata = told.setdefault("__metadata__", {})
    lie = rng.randrange(9)
    if lie == 0:
        told[name]["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X", 3, None))
    elif lie == 1:
        told[name]["shape"] = rng.choice(([], [0], [-1], [2**62, 4], [1] * 100, [1.5], "8", None, [2**40], [WIDTH, 1], [1, WIDTH]))
    elif lie == 2:
        told[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 0], [-8, 8], [0, len(body) + 8], [0], None, ["0", "8"]))
    elif lie == 3:
        told[rng.choice(("x", "word.", "word.clip_g", "scales", "target_outputs_k", "\0", "../x", "__proto__"))] = told.pop(name)
    elif lie == 4:
        del told[name]
    elif lie == 5:
        told[rng.choice(("more", "scales", "word.clip_g", "target_outputs_k"))] = dict(told[name])
    elif lie == 6 and metadata:
        metadata[rng.choice(sorted(metadata))] = rng.choice(HOSTILE_VALUES)
    elif lie == 7 and metadata:
        del metadata[rng.choice(sorted(metadata))]
    else:
        told["__metadata__"] = rng.choice(HOSTILE_VALUES)
    text = json.dumps(told).encode()
    if rng.random() < 0.1:  # a duplicate key
        text = text[:-1] + b"," + json.dumps({name: told.get(name)}).encode()[1:]
    if rng.random() < 0.05:
        text = b"[" * 50_000 + text
    return struct.pack("<Q", len(text)) + text + body


def numbers(rng: random.Random, good: bytes) -> bytes:
    """Replace one or all numbers of a tensor with values that no training produces."""
    (true,) = struct.unpack("<Q", good[:8])
    told, body = json.loads(good[8 : 8 + true]), bytearray(good[8 + true :])
    each = told[rng.choice([name for name in told if name != "__metadata__"])]
    first, last = each["data_offsets"]
    kind = {"F16": "e", "F32": "f", "F64": "d", "I8": "b"}.get(each["dtype"], "b")
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 6e4, 1e-7, 3e38))
    packed = struct.pack(f"<{kind}", rng.choice((-128, 127, 0)) if kind == "b" else float(value) if kind != "e" else clamp(value))
    places = range(first, last - len(packed) + 1, len(packed))
    for place in places if rng.random() < 0.5 else rng.sample(places, min(1, len(places))):
        body[place : place + len(packed)] = packed
    return good[: 8 + true] + bytes(body)


def clamp(value: float) -> float:
    """Clamp a finite value to the range of half precision."""
    return value if value != value or abs(value) == float("inf") else max(min(value, 65504.0), -65504.0)


def unwrapped(damage: Damage) -> Damage:
    """Apply a damage to the file inside a workflow's base64 text."""
    return lambda rng, good: base64.b64encode(damage(rng, base64.b64decode(good)))


EVERYWHERE: tuple[Damage, ...] = (bits, cut, longer, noise)
TENSORS: tuple[Damage, ...] = (length, header, header, header, numbers)
NOTES: tuple[Damage, ...] = (pictures.preview, pictures.training)


# ---- the run -------------------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """An audit hook that records harmful actions of the interpreter while files are read."""

    scratch: Path
    on: bool = False
    heard: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple) -> None:
        """Record an audit event if it is harmful or opens a file for writing."""
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in HARMFUL or writes:
            self.heard.append(f"{event} {arguments!r:.200}")


@dataclass
class Outcome:
    """The results of all cases."""

    counts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[float, str] = (0.0, "")

    def good(self) -> bool:
        """Whether no case went wrong and all limits were kept."""
        return not self.wrong and self.slowest[0] <= MOST_SECONDS and self.largest[0] <= MOST_MB

    def measured(self, what: str, seconds: float, mb: float) -> None:
        """Keep the slowest and the largest of the cases."""
        self.slowest = max(self.slowest, (seconds, what))
        self.largest = max(self.largest, (mb, what))


def run(cases: int, seed: int) -> Outcome:
    """Run this number of cases."""
    every, outcome = kinds(), Outcome()
    names = list(every)
    MARK.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder))
        sys.addaudithook(watch)
        for kind in every.values():  # valid files must be readable; this also triggers all late imports
            path = Path(folder) / f"good.{kind.suffix}"
            path.write_bytes(kind.good)
            kind.read(path)
        for i in range(cases):
            rng = random.Random(f"{seed} {i}")
            name = names[i % len(names)]
            damage, content = damaged(rng, name, every[name])
            path = Path(folder) / f"{rng.choice(NAMES)}.{every[name].suffix}"
            path.write_bytes(content)
            peak = Peak()
            watch.on, start = True, time.process_time()
            said = verdict(every[name].read, path)
            watch.on, seconds = False, time.process_time() - start
            outcome.measured(f"case {i}, {name}, {damage}", seconds, peak.grown_mb() - len(content) / 2**20)
            path.unlink()
            outcome.counts[name, said.partition(":")[0]] += 1
            if watch.heard or MARK.exists() or said.startswith(("crashed", "unclear")):
                outcome.wrong.append(f"case {i} of seed {seed}, {name}, {damage}: {said} {watch.heard}")
                watch.heard.clear()
                MARK.unlink(missing_ok=True)
    return outcome


def damaged(rng: random.Random, name: str, kind: Kind) -> tuple[str, bytes]:
    """Damage a valid file in a random way; return the damage's name and the damaged content."""
    damage = rng.choice((*EVERYWHERE, *(kind.damages or (*TENSORS, *NOTES))))
    inner = "workflow" in name and (damage in (*TENSORS, *NOTES) or rng.random() < 0.5)
    return damage.__name__, (unwrapped(damage) if inner else damage)(rng, kind.good)


def verdict(read: Callable[[Path], object], path: Path) -> str:
    """Read a file; return one of SAID, followed by details if it went wrong."""
    try:
        read(path)
    except PerfusionError as error:
        said = str(error)
        clear = said.isprintable() and len(said) <= LONGEST and said.endswith((".", "…"))
        return "refused" if clear else f"unclear: {said!r:.600}"
    except Exception as error:
        return f"crashed: {type(error).__name__} {error!r:.300}"
    return "read"


def page(outcome: Outcome, answers: dict[str, float], cases: int, seed: int) -> str:
    """Return the page with the results; `answers` are those of `importing.slowest_answers`."""
    names = sorted({name for name, _ in outcome.counts})
    rows = [f"| {name} | {' | '.join(str(outcome.counts[name, said]) for said in SAID)} |" for name in names]
    return "\n".join(
        [
            "# Files from strangers",
            "",
            f"Written by `python -m benchmarks.robustness.hostile --cases {cases} --seed {seed}`: valid files, each damaged in one "
            "way.",
            "",
            f"| kind | {' | '.join(SAID)} |",
            f"| --- | {' | '.join('---' for _ in SAID)} |",
            *rows,
            "",
            f"In {len(outcome.wrong)} cases, a file crashed the pack, was refused without a clear message, ran code or wrote a "
            f"file. The slowest ({outcome.slowest[1]}) took {outcome.slowest[0]:.2f} s of CPU time (limit: {MOST_SECONDS} s); the "
            f"one that needed the most memory ({outcome.largest[1]}) took {outcome.largest[0]:.0f} MB beyond the file's own size "
            f"(limit: {MOST_MB} MB).",
            "",
            f"The server's slowest answer to another request while *Import Concept* reads {importing.EACH} files with each kind of "
            f"damage (limit: {importing.MOST_MS} ms):",
            "",
            "| damage | slowest answer |",
            "| --- | --- |",
            *(f"| {name} | {ms:.0f} ms |" for name, ms in answers.items()),
            "",
        ]
    )


SAID = ("read", "refused", "unclear", "crashed")


def main() -> int:
    """Run the cases and write the page; return 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcome, answers = run(arguments.cases, arguments.seed), importing.slowest_answers()
    print(*outcome.wrong[:20], sep="\n")
    text = page(outcome, answers, arguments.cases, arguments.seed)
    print(text)
    (RESULTS / "hostile.md").write_text(text, encoding="utf-8")
    return 0 if outcome.good() and max(answers.values()) <= importing.MOST_MS else 1


if __name__ == "__main__":
    sys.exit(main())
