"""The content of a concept file: its metadata values, and the checks of its tensors.

See docs/file_format.md. This module does not depend on `Concept`; `concept.Concept.save` and `load` use it.
"""

import base64
import binascii
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .jpeg import size_of
from .safe_files import DTYPES as FLOATS
from .safe_files import require

FORMAT = "perfusion"


VERSIONS = FIRST, AT_WORD_SINCE, KEY_LAYERS_SINCE = "1", "2", "3"
"""The versions that can be read. A concept is written in the oldest version that fits, so that older packs can read it too."""


KEYS_AT, WORD = "keys_at", "word"
"""The metadata entry, and its only value, for trained keys that are edited only at the concept's own word; since AT_WORD_SINCE."""


KEY_LAYERS = "key_layers"
"""The metadata entry that lists the layers with trained keys, if not all layers have them; since KEY_LAYERS_SINCE."""


KEY_LOCK = "key_lock"
"""The metadata entry that says how far such keys are locked to the superclass."""


VALUES, KEYS = "target_outputs_v", "target_outputs_k"
"""The names of the tensors of target outputs."""


MAX_BYTES = 16 * 2**20


PREVIEW = "ssmd_cover_images"
"""The metadata entry that contains the preview."""
MAX_PREVIEW = 12 * 1024


MAX_SIDE = 1024
"""Maximum width and height of a preview in pixels; the page's MAX_SIDE, in web/preview.js, is the same."""


MAX_TEXT = 2**20
"""Maximum number of characters of a concept stored as text in a workflow."""


SUPERCLASS_LENGTH = 200


POSITIONS = 77
"""Tokens in a section of a prompt: the number of target outputs of a layer whose outputs differ by token position."""


MAX_VECTORS = 32
"""Maximum number of embedding vectors of a learned word."""


DTYPES = (torch.float16, torch.bfloat16, torch.float32)


READABLE = (*FLOATS, torch.int8, torch.uint8)


DETAILS = ("author", "license", "description", "date", "tags")


NUMBERS = {
    *("steps", "batch", "word_rate", "output_rate", "bias", "temperature", "flip", "small", "seed", "min_snr"),
    *("loss", "held_out_loss", "followed", "likeness", "prompted", "clip_layer"),
}
"""Training metadata of this pack whose values are numbers."""


TEXTS = {"lock", "mode", "initial_word"}
"""Training metadata of this pack whose values are texts."""


def pack_layers(widths: Mapping[str, int]) -> str:
    """Return layer names and widths as text: the ending shared by all names (`.` if there is none), then `name:width` per layer.

    The parts are separated by spaces, and names omit the shared ending. A name that differs from the previous one only in its
    last part is written as `.part`, and a width equal to the previous one is omitted. The text is empty if there are no layers.
    """
    if not widths:
        return ""
    names = list(widths)
    shared = names[0].split(".")[1:]
    for name in names:
        parts = name.split(".")[1:]
        while shared and parts[-len(shared) :] != shared:
            shared = shared[1:]
    end = "".join(f".{part}" for part in shared)
    entries, before, stays = [end or "."], "", 0
    for name, width in widths.items():
        stem, _, last = name.removesuffix(end).rpartition(".")
        short = f".{last}" if stem and stem == before else name.removesuffix(end)
        entries.append(short if width == stays else f"{short}:{width}")
        before, stays = stem, width
    return " ".join(entries)


def unpack_layers(text: str, path: Path) -> dict[str, int]:
    """Return the layers packed by `pack_layers`; raise PerfusionError about the file `path` for any other text."""
    if not text:
        return {}
    unreadable = "its list of layers cannot be read"
    end, *entries = text.split(" ")
    require(bool(re.fullmatch(r"\.[\w.]{0,200}", end)) and 0 < len(entries) <= 1000, path, unreadable)
    layers, name, width = {}, "", 0
    for entry in entries:
        found = re.fullmatch(r"(\.\w{1,200}|\w[\w.]{0,200})(?::([1-9][0-9]{0,4}))?", entry)
        require(found is not None, path, unreadable)
        stem, width = name.rpartition(".")[0], int(found[2] or width)
        require(width > 0 and bool(stem or not found[1].startswith(".")), path, unreadable)
        name = stem + found[1] if found[1].startswith(".") else found[1]
        layers[name + (end if end != "." else "")] = width
    require(len(layers) == len(entries), path, "its list of layers contains a layer twice")
    return layers


def parse_key_layers(text: str, layers: Mapping[str, int], path: Path) -> dict[str, int]:
    """Return the layers with trained keys, some of `layers` in their order; raise PerfusionError about `path` if they are not."""
    found = unpack_layers(text, path)
    good = bool(found) and list(found.items()) == [each for each in layers.items() if each[0] in found]
    require(good, path, f"its {KEY_LAYERS} are not some of its layers, in their order")
    return found


def check_tensors(tensors: Mapping[str, Tensor], widths: Mapping[str, list[int]], path: Path) -> None:
    """Raise PerfusionError about the file `path` unless its tensors are those of a concept.

    `widths` are those of the layers in target outputs, by the tensors' names.
    """
    layers = widths[VALUES]
    words = {name for name in tensors if re.fullmatch(r"word\.\w{1,40}", name)}
    outputs = set(widths) & set(tensors)
    require(bool(layers) or not outputs, path, "it contains target outputs, but its list of layers is empty")
    needed = {"target_input", "probe", "superclass_encoding"} | ({VALUES} if layers else set())
    missing, extra = needed - set(tensors), set(tensors) - words - needed - {KEYS}
    require(not missing, path, f"these tensors are missing: {', '.join(sorted(missing))}")
    require(not extra, path, f"it contains tensors that do not belong to a concept: {repr(sorted(extra))[1:200]}")
    require(bool(words), path, "it lacks a learned word")
    for name in sorted(words):
        shape = tuple(tensors[name].shape)
        good = len(shape) == 2 and 1 <= shape[0] <= MAX_VECTORS and 1 <= shape[1] <= 8192
        require(good, path, f"{name} has the shape {shape} instead of (1 to {MAX_VECTORS}, at most 8192)")
    require(len({tensors[name].shape[0] for name in words}) == 1, path, "its words have different numbers of vectors")
    width = tensors["target_input"].numel()
    expected = {name: sum(widths[name]) if name in widths else width for name in set(tensors) - words}
    for name, size in sorted(expected.items()):
        shape = tuple(tensors[name].shape)
        good = shape == (size,) or (shape == (POSITIONS, size) and name in widths)
        require(good, path, f"{name} has the shape {shape} instead of ({size},)")
    for name, tensor in tensors.items():
        require(tensor.dtype in DTYPES, path, f"{name} contains {tensor.dtype} instead of float16, bfloat16 or float32")
    probe = tensors["probe"].float()
    product = probe @ tensors["target_input"].float()
    # Gates divide the probe by this product.
    good = bool(0 < product < float("inf")) and bool((probe / product).isfinite().all())
    require(good, path, "its probe does not match its target input")


def parse_keys_at(text: str | None, tensors: Mapping[str, Tensor], path: Path) -> bool:
    """Return whether keys are edited only at the concept's own word; raise PerfusionError about the file `path` if malformed."""
    require(text in (None, WORD), path, f"its {KEYS_AT} is not {WORD!r}, the only value that it may have")
    require(text is None or KEYS in tensors, path, f"it has {KEYS_AT}, but no trained keys")
    return text is not None


def parse_key_lock(text: str, path: Path) -> float:
    """Return how far keys are locked, from 0 to 1; raise PerfusionError about the file `path` if malformed or out of range."""
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    require(0 <= share <= 1, path, f"its {KEY_LOCK} is not a number from 0 to 1")
    return share


def parse_gate(text: str, path: Path) -> tuple[float, float, float]:
    """Return bias, temperature and strength; raise PerfusionError about the file `path` if one is malformed or out of range."""
    try:
        bias, temperature, strength = (float(part) for part in text.split(" "))
    except ValueError:
        bias = temperature = strength = float("nan")
    good = -10 <= bias <= 10 and 0 < temperature <= 10 and 0 <= strength <= 1
    require(good, path, "its bias, temperature or strength is missing or out of range")
    return bias, temperature, strength


def parse_training(text: str, path: Path) -> dict[str, str | int | float]:
    """Return the settings of the training; raise PerfusionError about the file `path` unless it is an object of texts and numbers.

    They are for people to read, and a concept works without them. So a value that does not fit its name (see `sensible`) is left
    out instead of refusing the concept. All returned numbers are finite as floats.
    """
    try:
        training = json.loads(text)
    except (ValueError, RecursionError):
        training = None
    good = isinstance(training, dict) and all(isinstance(v, str | int | float) for v in training.values())
    require(good, path, "its training settings cannot be read")
    return {name: value for name, value in training.items() if sensible(name, value)}


def sensible(name: str, value: str | int | float) -> bool:
    """Return whether a value of the training metadata has the type that its name requires, and is finite if it is a number."""
    if isinstance(value, str):
        return name not in NUMBERS
    # False for NaN. Exact for integers that are too large for a float, for which float() would raise.
    finite = -sys.float_info.max <= value <= sys.float_info.max
    return finite and name not in TEXTS and not (name in NUMBERS and isinstance(value, bool))


def parse_preview(text: str | None, path: Path) -> bytes:
    """Return the JPEG bytes of the preview, empty if `text` is None; raise PerfusionError about the file `path` if invalid.

    Its size is read from its header, before anything decodes it. Whether the rest can be decoded is not checked.
    """
    if text is None:
        return b""
    try:
        pictures = json.loads(text)
        preview = base64.b64decode(pictures[0], validate=True)
    except (ValueError, binascii.Error, RecursionError, TypeError, LookupError):
        preview = None
    size = size_of(preview) if preview is not None and len(preview) <= MAX_PREVIEW else None
    good = size is not None and all(1 <= side <= MAX_SIDE for side in size)
    wanted = f"a JPEG picture of at most {MAX_PREVIEW} bytes and {MAX_SIDE} pixels a side"
    require(good, path, f"its preview is not {wanted}")
    return preview
