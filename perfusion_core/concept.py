"""What a concept is, and its file.

A file is one safetensors file of a few tensors: `word.<encoder>` [n, width], `target_input` [d], `probe` [d],
`superclass_encoding` [d], `target_outputs_v` [Σ m] and, where keys were trained, `target_outputs_k` [Σ m], the layers one after
another in the order of the metadata's `layers`. Target outputs that differ by token position are [77, Σ m] instead. A word alone
has no target outputs, and its `layers` is an empty text. Tensors of eight and of four bits have scales beside them (see
`rounding`). All metadata values are text, as the format wants.
"""

import base64
import binascii
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from . import PerfusionError
from .edit import Edit
from .files import DTYPES as FLOATS
from .files import parse, read, require, shown, write
from .rounding import EIGHT, FOUR, SCALES, restored, rounded

FORMAT = "perfusion"
VERSION = 1
MAX_BYTES = 16 * 2**20
MAX_PREVIEW = 12 * 1024
MAX_TEXT = 2**20
"""Characters of a concept that is held as text, in a workflow."""
TRIGGER = re.compile(r"<[\w-]{1,64}>")
SUPERCLASS_LENGTH = 200
POSITIONS = 77
"""Tokens of a section of a prompt: how many target outputs a layer has where they differ by position."""
MAX_VECTORS = 32
"""A learned word has so many embedding vectors at most."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
READABLE = (*FLOATS, torch.int8, torch.uint8)


def check_trigger(trigger: str) -> str:
    """The trigger word, if it is one that survives in a prompt.

    Raises:
        PerfusionError: it is not `<name>` with a name of letters, digits, `_` and `-`.
    """
    if not TRIGGER.fullmatch(trigger):
        raise PerfusionError(
            f"A trigger word is a name in angle brackets, of letters, digits, - and _, such as <my-teddy>; {trigger[:80]!r} is not."
        )
    return trigger


@dataclass(frozen=True)
class Concept:
    """A concept that was taught to one base family: a word, and what it makes of each layer, or the word alone.

    Attributes:
        trigger: what stands for it in prompts, `<name>`.
        superclass: the word that its keys are locked to, such as "teddy".
        family: of the base model, as the host names it, such as "sd1".
        word: text encoder's name -> learned embedding vectors, [n, width of that encoder].
        target_input: i*, [d].
        probe: C⁻¹ i*, up to a factor, [d]; sim(e) = ⟨probe, e⟩ / ⟨probe, i*⟩.
        superclass_encoding: mean encoding of the superclass word in the training prompts, [d].
        values: layer -> o*_V, [m], or [POSITIONS, m] where they differ by token position; empty for a word alone (Textual
            Inversion), which edits no layer.
        keys: layer -> o*_K, likewise, where keys were trained; empty where they are locked.
        bias: β at inference.
        temperature: τ at inference.
        strength: share of the edit that is applied, between 0 and 1.
        training: settings of the training, for people to read.
        preview: a JPEG picture of at most MAX_PREVIEW bytes, or empty.
        region: where in the picture the concept may show, [H, W] in 0…1 of any size; None for everywhere. A setting for one
            graph: files do not hold it.
        details: further ModelSpec metadata: "author", "license", "description" and the like.
    """

    trigger: str
    superclass: str
    family: str
    word: Mapping[str, Tensor]
    target_input: Tensor
    probe: Tensor
    superclass_encoding: Tensor
    values: Mapping[str, Tensor]
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    bias: float = 0.6
    temperature: float = 0.15
    strength: float = 1.0
    training: Mapping[str, str | int | float] = field(default_factory=dict)
    preview: bytes = b""
    details: Mapping[str, str] = field(default_factory=dict)
    region: Tensor | None = None

    @property
    def layers(self) -> dict[str, int]:
        """Layer -> width m of its projections."""
        return {layer: output.shape[-1] for layer, output in self.values.items()}

    def with_settings(self, **settings: str | float | Tensor) -> "Concept":
        """The concept with another bias, temperature, strength, trigger or region.

        Raises:
            PerfusionError: the trigger is not a trigger word.
        """
        check_trigger(str(settings.get("trigger", self.trigger)))
        return replace(self, **settings)

    def save(self, path: Path, dtype: torch.dtype = torch.float16, overwrite: bool = True) -> None:
        """Write the file, whole or not at all, its tensors in `dtype`, one of DTYPES or `rounding`'s EIGHT and FOUR.

        Raises:
            PerfusionError: the disk will not take it, or `dtype` cannot hold a number.
            files.Taken: there is a file of this name, and it is not to be written over.
        """
        tensors = {f"word.{name}": vectors for name, vectors in self.word.items()}
        # A factor of the probe does not matter, and half precision has no room for small numbers.
        probe = self.probe / self.probe.abs().max() if dtype == torch.float16 else self.probe
        tensors |= {"target_input": self.target_input, "probe": probe, "superclass_encoding": self.superclass_encoding}
        if self.values:
            tensors["target_outputs_v"] = torch.cat(list(self.values.values()), dim=-1)
        if self.keys:
            tensors["target_outputs_k"] = torch.cat([self.keys[layer] for layer in self.values], dim=-1)
        whole = dtype in (EIGHT, FOUR)
        floating = torch.float32 if whole else dtype
        tensors = {name: tensor.to(floating) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise PerfusionError(
                    f"{shown(path)} was not saved: {name} holds what {dtype} cannot; save in float32, or train with lower rates."
                )
        held = rounded(tensors, list(self.layers.values()), dtype) if whole else tensors
        write(path, held, self._metadata(), overwrite)

    def _metadata(self) -> dict[str, str]:
        """The file's metadata: ModelSpec 1.0.1's keys and those that the host's model browser reads, then our own."""
        metadata = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{self.family}/perfusion",
            "modelspec.title": self.trigger.strip("<>"),
            "modelspec.trigger_phrase": self.trigger,
            "modelspec.base_model": self.family,
            "trained_words": json.dumps([self.trigger], ensure_ascii=False),
            "format": FORMAT,
            "version": str(VERSION),
            "superclass": self.superclass,
            "layers": pack_layers(self.layers),
            "gate": f"{float(self.bias)} {float(self.temperature)} {float(self.strength)}",
            "training": json.dumps(dict(self.training), separators=(",", ":")),
        }
        metadata |= {f"modelspec.{name}": text for name, text in self.details.items() if text}
        if self.preview:
            metadata["ssmd_cover_images"] = json.dumps([base64.b64encode(self.preview).decode()])
        return metadata

    @classmethod
    def load(cls, path: Path) -> "Concept":
        """Read and check a file; tensors come as float32.

        Raises:
            PerfusionError: the file is not a whole, finite, consistent concept of a version that this code knows.
        """
        return cls._of(*read(path, MAX_BYTES, READABLE), path)

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Concept":
        """What a file with this content holds; `name` stands for it in errors. Raises PerfusionError as `load` does."""
        path = Path(name)
        return cls._of(*parse(content, path, READABLE), path)

    @classmethod
    def from_text(cls, text: str, name: str) -> "Concept":
        """What a file holds, from its bytes in base64; `name` stands for it in errors.

        Raises:
            PerfusionError: the text is too long, no base64, or not of a file that `load` would take.
        """
        require(
            len(text) <= MAX_TEXT, Path(name), f"it is a text of {len(text)} characters, more than the {MAX_TEXT} that it may have"
        )
        try:
            content = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error) as error:
            raise PerfusionError(f"{name} cannot be used: it is not a file's content in base64.") from error
        return cls.from_bytes(content, name)

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> "Concept":
        require(metadata.get("format") == FORMAT, path, "it is not a Perfusion concept")
        version = metadata.get("version", "")[:20]
        require(version == str(VERSION), path, f"its format version is {version!r} and this pack reads {VERSION}; update the pack")
        trigger, superclass = metadata.get("modelspec.trigger_phrase", ""), metadata.get("superclass", "")
        require(bool(TRIGGER.fullmatch(trigger)), path, "its trigger word is not a name in angle brackets")
        require(bool(superclass.strip()), path, "its superclass is missing")
        require(len(superclass) <= SUPERCLASS_LENGTH, path, f"its superclass has more than {SUPERCLASS_LENGTH} characters")
        family = metadata.get("modelspec.base_model", "")
        require(bool(re.fullmatch(r"[\w.-]{1,40}", family)), path, "its base family is missing")
        require("layers" in metadata, path, "its list of layers is missing")
        layers = unpack_layers(metadata["layers"], path)
        if SCALES in tensors:
            tensors = restored(tensors, list(layers.values()), path)
        check_tensors(tensors, layers, path)
        words = {name.removeprefix("word."): t.float() for name, t in tensors.items() if name.startswith("word.")}
        outputs = {
            which: dict(zip(layers, tensors[f"target_outputs_{which}"].float().split(list(layers.values()), dim=-1), strict=True))
            for which in "vk"
            if f"target_outputs_{which}" in tensors
        }
        bias, temperature, strength = parse_gate(metadata.get("gate", ""), path)
        return cls(
            trigger=trigger,
            superclass=superclass,
            family=family,
            word=words,
            target_input=tensors["target_input"].float(),
            probe=tensors["probe"].float(),
            superclass_encoding=tensors["superclass_encoding"].float(),
            values=outputs.get("v", {}),
            keys=outputs.get("k", {}),
            bias=bias,
            temperature=temperature,
            strength=strength,
            training=parse_training(metadata.get("training", "{}"), path),
            preview=parse_preview(metadata.get("ssmd_cover_images"), path),
            details={k: str(metadata[f"modelspec.{k}"])[:2000] for k in DETAILS if f"modelspec.{k}" in metadata},
        )


DETAILS = ("author", "license", "description", "date", "tags")


def pack_layers(widths: Mapping[str, int]) -> str:
    """Layer names and widths as text: the end that all names share, then `name:width` each, separated by spaces.

    A name that differs from the one before in its last part alone is written as `.part`, and a width that stays is left out.
    No layers are the empty text.
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
    """What `pack_layers` packed; raises PerfusionError about the file `path` where the text is anything else."""
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
    require(len(layers) == len(entries), path, "its list of layers names one twice")
    return layers


def check_tensors(tensors: Mapping[str, Tensor], layers: Mapping[str, int], path: Path) -> None:
    """Raise PerfusionError about the file `path` unless its tensors are those of a concept with these layers."""
    words = {name for name in tensors if re.fullmatch(r"word\.\w{1,40}", name)}
    outputs = {"target_outputs_v", "target_outputs_k"} & set(tensors)
    require(bool(layers) or not outputs, path, "it holds target outputs, but its list of layers is empty")
    needed = {"target_input", "probe", "superclass_encoding"} | ({"target_outputs_v"} if layers else set())
    missing, extra = needed - set(tensors), set(tensors) - words - needed - {"target_outputs_k"}
    require(not missing, path, f"it lacks the tensor {', '.join(sorted(missing))}")
    require(not extra, path, f"it holds tensors that no concept has: {repr(sorted(extra))[1:200]}")
    require(bool(words), path, "it lacks a learned word")
    for name in sorted(words):
        shape = tuple(tensors[name].shape)
        good = len(shape) == 2 and 1 <= shape[0] <= MAX_VECTORS and 1 <= shape[1] <= 8192
        require(good, path, f"{name} has the shape {shape} where (1 to {MAX_VECTORS}, at most 8192) was expected")
    require(len({tensors[name].shape[0] for name in words}) == 1, path, "its words differ in their number of vectors")
    width, total = tensors["target_input"].numel(), sum(layers.values())
    expected = {name: total if name.startswith("target_outputs") else width for name in set(tensors) - words}
    for name, size in sorted(expected.items()):
        shape = tuple(tensors[name].shape)
        good = shape == (size,) or (shape == (POSITIONS, size) and name.startswith("target_outputs"))
        require(good, path, f"{name} has the shape {shape} where ({size},) was expected")
    for name, tensor in tensors.items():
        require(tensor.dtype in DTYPES, path, f"{name} holds {tensor.dtype} where float16, bfloat16 or float32 was expected")
    product = float(tensors["probe"].float() @ tensors["target_input"].float())
    require(0 < product < float("inf"), path, "its probe does not fit its target input")


def parse_gate(text: str, path: Path) -> tuple[float, float, float]:
    """Bias, temperature and strength; raises PerfusionError about the file `path` where the text is anything else."""
    try:
        bias, temperature, strength = (float(part) for part in text.split(" "))
    except ValueError:
        bias = temperature = strength = float("nan")
    good = -10 <= bias <= 10 and 0 < temperature <= 10 and 0 <= strength <= 1
    require(good, path, "its bias, temperature and strength cannot be read")
    return bias, temperature, strength


def parse_training(text: str, path: Path) -> dict[str, str | int | float]:
    """The training's settings; raises PerfusionError about the file `path` where the text is anything else."""
    try:
        training = json.loads(text)
    except (ValueError, RecursionError):
        training = None
    good = isinstance(training, dict) and all(isinstance(v, str | int | float) for v in training.values())
    require(good, path, "its training settings cannot be read")
    return training


def parse_preview(text: str | None, path: Path) -> bytes:
    """The preview picture's bytes, undecoded; raises PerfusionError about the file `path` where the text is anything else."""
    if text is None:
        return b""
    try:
        pictures = json.loads(text)
        preview = base64.b64decode(pictures[0], validate=True)
    except (ValueError, binascii.Error, RecursionError, TypeError, LookupError):
        preview = None
    good = preview is not None and len(preview) <= MAX_PREVIEW and preview.startswith(b"\xff\xd8\xff")
    require(good, path, f"its preview is not a JPEG picture of at most {MAX_PREVIEW} bytes")
    return preview


Stack = tuple[Concept, ...]
"""Concepts that are used together; no two have one trigger word."""


def combine(*stacks: Stack) -> Stack:
    """All concepts of the stacks, ordered by trigger word, so that the order they were given in does not matter.

    Raises:
        PerfusionError: two have one trigger word, or they are of different base families.
    """
    concepts = sorted((concept for stack in stacks for concept in stack), key=lambda c: c.trigger.casefold())
    for one, other in itertools.pairwise(concepts):
        if one.trigger.casefold() == other.trigger.casefold():
            raise PerfusionError(
                f"Two concepts have the trigger word {one.trigger}: a {one.superclass} and a {other.superclass}; "
                "give one of them another trigger word with Concept Settings."
            )
        if one.family != other.family:
            raise PerfusionError(
                f"{one.trigger} was taught to {one.family} and {other.trigger} to {other.family}; "
                "concepts that are used together must share their base family."
            )
    return tuple(concepts)


def with_outputs(stack: Stack) -> Stack:
    """The concepts that edit layers: all but words alone."""
    return tuple(concept for concept in stack if concept.values)


def stacked(outputs: list[Tensor]) -> Tensor:
    """One layer's target outputs of J concepts, [J, m], or [J, POSITIONS, m] where any of them differ by token position."""
    return torch.stack(torch.broadcast_tensors(*outputs))


def edit_of(stack: Stack, mode: str) -> Edit | None:
    """The edit that the concepts make together, in one of `edit.MODES`; None where all are words alone.

    Raises:
        PerfusionError: the concepts do not fit the same encodings or layers.
    """
    stack = with_outputs(stack)
    if not stack:
        return None
    layers = stack[0].layers
    for concept in stack[1:]:
        if concept.layers != layers or len(concept.probe) != len(stack[0].probe):
            raise PerfusionError(f"{concept.trigger} and {stack[0].trigger} were taught to models of different shape.")
    trained = torch.tensor([bool(concept.keys) for concept in stack])
    keys = {}
    if trained.any():
        keys = {layer: stacked([c.keys.get(layer, c.values[layer]) for c in stack]) for layer in layers}
    return Edit(
        mode=mode,
        target_inputs=torch.stack([c.target_input for c in stack]),
        probes=torch.stack([c.probe / (c.probe @ c.target_input) for c in stack]),
        superclass_encodings=torch.stack([c.superclass_encoding for c in stack]),
        bias=torch.tensor([c.bias for c in stack]),
        temperature=torch.tensor([c.temperature for c in stack]),
        strength=torch.tensor([c.strength for c in stack]),
        values={layer: stacked([c.values[layer] for c in stack]) for layer in layers},
        keys=keys,
        keys_trained=trained,
    )
