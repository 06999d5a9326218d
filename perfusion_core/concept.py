"""The concept, and reading and writing it as a file.

A concept is stored as one safetensors file with the tensors `word.<encoder>` [n, width], `target_input` [d], `probe` [d],
`superclass_encoding` [d], `target_outputs_v` [Σ m] and, if keys were trained, `target_outputs_k` [Σ m], with the layers
concatenated in the order of `layers` in the metadata; `key_layers` there lists those with trained keys, if not all have them, and
`keys_at` marks trained keys that are edited only at the concept's own word. Target outputs that differ by token position are [77,
Σ m] instead. A concept that is only a word has no target outputs and an empty `layers`. Tensors of eight and of four bits come
with scales (see `quantization`). All metadata values are text, as the format requires.
"""

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from . import PerfusionError
from .concept_file import (
    AT_WORD_SINCE,
    DETAILS,
    FIRST,
    FORMAT,
    KEY_LAYERS,
    KEY_LAYERS_SINCE,
    KEY_LOCK,
    KEYS,
    KEYS_AT,
    MAX_BYTES,
    MAX_TEXT,
    PREVIEW,
    READABLE,
    SUPERCLASS_LENGTH,
    VALUES,
    VERSIONS,
    WORD,
    check_tensors,
    pack_layers,
    parse_gate,
    parse_key_layers,
    parse_key_lock,
    parse_keys_at,
    parse_preview,
    parse_training,
    unpack_layers,
)
from .quantization import INT8, SCALES, UINT4, dequantize, quantize
from .safe_files import parse, read, require, shown, write
from .schedule import ALWAYS, Schedule

TRIGGER = re.compile(r"<[\w-][^<>]{0,63}>")


def is_trigger(text: str) -> bool:
    """Return whether a text is `<name>`, with a name of letters and the marks on them, digits, `_` and `-`."""

    def fits(char: str) -> bool:
        return char in "_-" or char.isalnum() or unicodedata.category(char).startswith("M")

    return bool(TRIGGER.fullmatch(text)) and all(map(fits, text[1:-1]))


def check_trigger(trigger: str) -> str:
    """Return the trigger word if it is valid, which means that it stays intact in a prompt.

    Raises:
        PerfusionError: it is not `<name>` with a name of letters, digits, `_` and `-`.
    """
    if not is_trigger(trigger):
        raise PerfusionError(
            "A trigger word must be in angle brackets and contain only 1 to 64 letters, digits, - and _, such as <my-teddy>; "
            f"{trigger[:80]!r} is not valid."
        )
    return trigger


def search_words(metadata: Mapping[str, object]) -> tuple[str, str]:
    """Return the trigger word and the superclass from a file's metadata; empty where a concept cannot have the value."""
    trigger, superclass = metadata.get("modelspec.trigger_phrase"), metadata.get("superclass")
    named = isinstance(trigger, str) and is_trigger(trigger)
    known = isinstance(superclass, str) and len(superclass) <= SUPERCLASS_LENGTH
    return trigger if named else "", superclass if known else ""


@dataclass(frozen=True)
class Concept:
    """A concept learned for one base family: a word with its edit of each layer, or only a word.

    Attributes:
        trigger: the word that stands for it in prompts, `<name>`.
        superclass: the word that its keys are locked to, such as "teddy".
        family: of the base model, as named by the host, such as "sd1".
        word: text encoder's name -> learned embedding vectors, [n, width of that encoder].
        target_input: i*, [d].
        probe: C⁻¹ i*, up to a factor, [d]; sim(e) = ⟨probe, e⟩ / ⟨probe, i*⟩.
        superclass_encoding: mean encoding of the superclass word in the training prompts, [d].
        values: layer -> o*_V, [m], or [POSITIONS, m] if they differ by token position; empty if the concept is only a word (Textual
            Inversion), which edits no layer.
        keys: layer -> o*_K, likewise, of the layers in which keys were trained; in the others, they are locked.
        keys_at_word: whether keys are edited only at the concept's own word, in all layers; see `Edit.keys_at_word`.
        key_lock: how far such keys stay locked to the superclass, between 0 and 1; 0 for all other concepts.
        bias: β at inference.
        temperature: τ at inference.
        strength: share of the edit that is applied, between 0 and 1.
        training: settings of the training, for information only.
        preview: a JPEG picture of at most MAX_PREVIEW bytes, or empty.
        region: where in the picture the concept may appear, [H, W] in 0…1 of any size; None for everywhere. It is a setting of
            one graph and is not stored in files.
        details: further ModelSpec metadata: "author", "license", "description" and the like.
        schedule: in which part of a run it acts, and how its bias changes over it; like the region, it is not stored in files.
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
    schedule: Schedule = ALWAYS
    keys_at_word: bool = False
    key_lock: float = 0.0

    @property
    def layers(self) -> dict[str, int]:
        """Layer -> width m of its projections; empty if the concept is only a word."""
        return {layer: output.shape[-1] for layer, output in self.values.items()}

    @property
    def key_layers(self) -> dict[str, int]:
        """The layers in which keys were trained, as in `layers` and in the same order."""
        return {layer: width for layer, width in self.layers.items() if layer in self.keys}

    def with_settings(self, **settings: str | float | Tensor | Schedule) -> "Concept":
        """Return a copy of the concept with another bias, temperature, strength, trigger, region or schedule.

        `key_lock` changes only a concept that has keys at its word.

        Raises:
            PerfusionError: the trigger is not a valid trigger word.
        """
        check_trigger(str(settings.get("trigger", self.trigger)))
        if not self.keys_at_word:
            settings.pop("key_lock", None)
        return replace(self, **settings)

    def save(self, path: Path, dtype: torch.dtype = torch.float16, overwrite: bool = True) -> None:
        """Write the file atomically, with tensors in `dtype`: one of `concept_file.DTYPES`, or `quantization`'s INT8 or UINT4.

        Raises:
            PerfusionError: the file cannot be written, or `dtype` cannot represent a value.
            safe_files.FileTakenError: `overwrite` is False and the file exists.
        """
        tensors = {f"word.{name}": vectors for name, vectors in self.word.items()}
        # The scale of the probe does not matter, and float16 cannot represent small numbers.
        probe = self.probe / self.probe.abs().max() if dtype == torch.float16 else self.probe
        tensors |= {"target_input": self.target_input, "probe": probe, "superclass_encoding": self.superclass_encoding}
        if self.values:
            tensors[VALUES] = torch.cat(list(self.values.values()), dim=-1)
        if self.keys:
            tensors[KEYS] = torch.cat([self.keys[layer] for layer in self.key_layers], dim=-1)
        whole = dtype in (INT8, UINT4)
        floating = torch.float32 if whole else dtype
        tensors = {name: tensor.to(floating) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise PerfusionError(
                    f"{shown(path)} was not saved: {name} contains a number that {dtype} cannot represent; save in float32, or "
                    "train with lower learning rates."
                )
        widths = {VALUES: list(self.layers.values()), KEYS: list(self.key_layers.values())}
        held = quantize(tensors, widths, dtype) if whole else tensors
        write(path, held, self._metadata(), overwrite)

    def _metadata(self) -> dict[str, str]:
        """Return the file's metadata: keys of ModelSpec 1.0.1 and of the host's model browser, then this format's own."""
        partly = 0 < len(self.keys) < len(self.values)
        metadata = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{self.family}/perfusion",
            "modelspec.title": self.trigger.strip("<>"),
            "modelspec.trigger_phrase": self.trigger,
            "modelspec.base_model": self.family,
            "trained_words": json.dumps([self.trigger], ensure_ascii=False),
            "format": FORMAT,
            "version": KEY_LAYERS_SINCE if partly else AT_WORD_SINCE if self.keys_at_word else FIRST,
            "superclass": self.superclass,
            "layers": pack_layers(self.layers),
            "gate": f"{float(self.bias)} {float(self.temperature)} {float(self.strength)}",
            "training": json.dumps(dict(self.training), separators=(",", ":")),
        }
        metadata |= {f"modelspec.{name}": text for name, text in self.details.items() if text}
        if partly:
            metadata[KEY_LAYERS] = pack_layers(self.key_layers)
        if self.keys_at_word:
            metadata |= {KEYS_AT: WORD, KEY_LOCK: str(float(self.key_lock))}
        if self.preview:
            metadata[PREVIEW] = json.dumps([base64.b64encode(self.preview).decode()])
        return metadata

    @classmethod
    def load(cls, path: Path) -> "Concept":
        """Read and validate a file; its tensors are converted to float32.

        Raises:
            PerfusionError: the file is not a complete, finite, consistent concept of a supported version.
        """
        return cls._of(*read(path, MAX_BYTES, READABLE), path)

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Concept":
        """Return the concept of a file with this content; `name` identifies it in errors. Raise PerfusionError as `load` does."""
        path = Path(name)
        return cls._of(*parse(content, path, READABLE), path)

    @classmethod
    def from_text(cls, text: str, name: str) -> "Concept":
        """Return the concept of a file whose bytes are given in base64; `name` identifies it in errors.

        Raises:
            PerfusionError: the text is too long, is not base64, or does not encode a file that `load` would accept.
        """
        require(len(text) <= MAX_TEXT, Path(name), f"it has {len(text)} characters, more than the limit of {MAX_TEXT}")
        try:
            content = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise PerfusionError(f"{name} cannot be used: it is not valid base64.") from None
        return cls.from_bytes(content, name)

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> "Concept":
        require(metadata.get("format") == FORMAT, path, "it is not a Perfusion concept")
        version = metadata.get("version", "")[:20]
        require(
            version in VERSIONS,
            path,
            f"its format version is {version!r}, but this pack reads only 1 to {VERSIONS[-1]}; update the pack",
        )
        trigger, superclass = metadata.get("modelspec.trigger_phrase", ""), metadata.get("superclass", "")
        require(is_trigger(trigger), path, "its trigger word is not a name in angle brackets")
        require(bool(superclass.strip()), path, "its superclass is missing")
        require(len(superclass) <= SUPERCLASS_LENGTH, path, f"its superclass has more than {SUPERCLASS_LENGTH} characters")
        family = metadata.get("modelspec.base_model", "")
        require(bool(re.fullmatch(r"[\w.-]{1,40}", family)), path, "its base family is missing")
        require("layers" in metadata, path, "its list of layers is missing")
        layers = unpack_layers(metadata["layers"], path)
        partly = version == KEY_LAYERS_SINCE and KEY_LAYERS in metadata
        of = {VALUES: layers, KEYS: parse_key_layers(metadata[KEY_LAYERS], layers, path) if partly else layers}
        widths = {name: list(each.values()) for name, each in of.items()}
        if SCALES in tensors:
            tensors = dequantize(tensors, widths, path)
        check_tensors(tensors, widths, path)
        require(not partly or KEYS in tensors, path, f"it has {KEY_LAYERS}, but no trained keys")
        at_word = version != FIRST and parse_keys_at(metadata.get(KEYS_AT), tensors, path)
        key_lock = parse_key_lock(metadata.get(KEY_LOCK, "0"), path) if at_word else 0.0
        words = {name.removeprefix("word."): t.float() for name, t in tensors.items() if name.startswith("word.")}
        outputs = {
            name: dict(zip(each, tensors[name].float().split(widths[name], dim=-1), strict=True))
            for name, each in of.items()
            if name in tensors
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
            values=outputs.get(VALUES, {}),
            keys=outputs.get(KEYS, {}),
            keys_at_word=at_word,
            key_lock=key_lock,
            bias=bias,
            temperature=temperature,
            strength=strength,
            training=parse_training(metadata.get("training", "{}"), path),
            preview=parse_preview(metadata.get(PREVIEW), path),
            details={k: str(metadata[f"modelspec.{k}"])[:2000] for k in DETAILS if f"modelspec.{k}" in metadata},
        )
