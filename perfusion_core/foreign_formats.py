"""Import of concept files from two other implementations. The files are pickles and need stricter checks than this pack's own.

The `save` of perfusion-pytorch writes a dictionary of

    embed_params       [c, width], a vector for each of c concepts
    key_value_params   [[i* [c, d], o* [c, m]], …], one pair for each edited projection, in the order of the model's modules:
                       to_k, then to_v of each layer; the o* of to_k are W_K of the superclass and are never trained
    C_inv              C⁻¹, [d, d]

A checkpoint of ChenDarYen's Key-Locked-Rank-One-Editing-for-Text-to-Image-Personalization is a dictionary of

    C_inv              C⁻¹, [d, d]
    target_input       i*, [d], a moving average of the word's encodings, initialised with the superclass's encoding
    embedding          {"string_to_param": ParameterDict {placeholder: [n, width]}, …}, and in newer files "initializer_words":
                       an OmegaConf list of one superclass, which references the complete training configuration
    target_output      {"<layer>.to_k.target_output": [77, m], "<layer>.to_v.target_output": [77, m], …}, an o* for each token
                       position. Both are initialised with W applied to the superclass prompts' encodings at that position;
                       those of to_k keep this value.

Both implement Eq. 3, encode text as the host does (SD1: last layer; SD2: last but one; both through the final norm) and do not
store bias and temperature. Options of sampling that are not stored in a file, such as the latter's global locking, are not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import PerfusionError, torch_pickle
from .concept import Concept
from .concept_file import MAX_VECTORS, POSITIONS, SUPERCLASS_LENGTH
from .covariance import probe
from .safe_files import DTYPES, require, shown
from .torch_archive import Archive
from .torch_pickle import Opaque

MAX_BYTES = 64 * 2**20
BIAS, TEMPERATURE = 0.7, 0.15
"""Inference defaults of both implementations; their files do not store other values."""

OTHER_BASE = "choose a checkpoint of the base model that it was trained on"
ALIKE = 1e-4
"""perfusion-pytorch stores i* once per projection; the copies may differ from their mean by this share of its length."""

PERFUSION_PYTORCH = "perfusion-pytorch"
CHENDARYEN = "ChenDarYen/Key-Locked-Rank-One-Editing-for-Text-to-Image-Personalization"


@dataclass(frozen=True)
class Foreign:
    """One concept of a foreign file; its tensors are float32, finite and of the model's shapes.

    Attributes:
        kind: PERFUSION_PYTORCH or CHENDARYEN.
        word: embedding vectors, [n, width].
        target_input: i*, [d].
        inverse: C⁻¹, [d, d]; None if the file has none.
        values: layer -> o*_V, [m], or [POSITIONS, m] if they differ by token position.
        keys: layer -> o*_K, likewise.
        superclass: as stored in the file; empty if it is not.
    """

    kind: str
    word: Tensor
    target_input: Tensor
    inverse: Tensor | None
    values: dict[str, Tensor]
    keys: dict[str, Tensor]
    superclass: str

    def concept(
        self, trigger: str, superclass: str, family: str, encoder: str, superclass_encoding: Tensor, inverse: Tensor
    ) -> Concept:
        """Return the concept with the file's keys; `inverse` is C⁻¹, float64 [d, d], `encoder` the name of the text encoder.

        Raises:
            PerfusionError: the squared length of i* in the metric of C⁻¹ is not positive and finite.
        """
        length = float(self.target_input.double() @ inverse @ self.target_input.double())
        if not 0 < length < float("inf"):
            raise PerfusionError(
                "The file cannot be used: its target input does not have a positive length in the metric of its inverse "
                "covariance; one of the two is wrong, or the file was saved before training."
            )
        return Concept(
            trigger=trigger,
            superclass=superclass,
            family=family,
            word={encoder: self.word},
            target_input=self.target_input,
            probe=probe(inverse, self.target_input),
            superclass_encoding=superclass_encoding,
            values=self.values,
            keys=self.keys,
            bias=BIAS,
            temperature=TEMPERATURE,
            training={"imported": self.kind},
        )


# ---- loading a file ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """Return the content of a foreign file, read without running any of its code; its tensors are not checked yet.

    Raises:
        PerfusionError: the file is missing, larger than MAX_BYTES, broken, contains code, or is of neither implementation.
    """
    try:
        size = path.stat().st_size
        require(size <= MAX_BYTES, path, f"it is {size} bytes, more than the limit of {MAX_BYTES} for a concept")
        with path.open("rb") as file:
            found = torch_pickle.read(Archive(file, path, MAX_BYTES), path)
    except OSError as error:
        raise PerfusionError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    kind_of(found, path)
    return found


def kind_of(found: Any, path: Path) -> str:
    """Return which implementation wrote the content `found`; raise PerfusionError about the file `path` if neither did."""
    names = set(found) if isinstance(found, dict) else set()
    if {"embed_params", "key_value_params"} <= names:
        return PERFUSION_PYTORCH
    known = {"target_input", "embedding", "target_output"} <= names
    require(known, path, f"it is not a concept from {PERFUSION_PYTORCH} or {CHENDARYEN}")
    return CHENDARYEN


def read(path: Path, layers: Mapping[str, int], width: int, embedding: int, number: int = 1) -> Foreign:
    """Read and validate one concept of a foreign file.

    Args:
        path: the file.
        layers: the model's cross-attention layers, in the model's order -> width m of their projections.
        width: d, the width of the model's encodings.
        embedding: width of its text encoder's embedding vectors.
        number: which concept to read from a file of several, counted from 1.

    Raises:
        PerfusionError: the file is not a complete, finite concept for such a model.
    """
    found = load(path)
    kind = kind_of(found, path)
    inverse = found.get("C_inv")
    take = _perfusion_pytorch if kind == PERFUSION_PYTORCH else _chendaryen
    return Foreign(
        kind=kind,
        inverse=None if inverse is None else checked(inverse, "C_inv", (width, width), path),
        **take(found, path, layers, width, embedding, number),
    )


# ---- extracting a concept ----------------------------------------------------------------------------------------------------


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor; empty for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def checked(value: Any, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Return a tensor of a foreign file as float32 [shape], with memory of its own.

    Raises:
        PerfusionError: it is not a tensor, has another shape, is not of floating point, or is not finite.
    """
    # Check the shape first: with strides of 0, a file can claim any size for a few numbers.
    require(shape_of(value) == shape, path, f"its {name} has the shape {shape_of(value)} instead of {shape}")
    require(value.dtype in DTYPES, path, f"its {name} contains {value.dtype}, not floating-point numbers of 16 to 64 bits")
    numbers = value.detach().to(torch.float32, copy=True).contiguous()
    require(bool(numbers.isfinite().all()), path, f"its {name} contains NaN, infinity or numbers too large for float32")
    return numbers


def _perfusion_pytorch(
    found: Mapping[str, Any], path: Path, layers: Mapping[str, int], width: int, embedding: int, number: int
) -> dict[str, Any]:
    """Return the fields of a `Foreign` from a file of perfusion-pytorch."""
    embedded, pairs = found["embed_params"], found["key_value_params"]
    require(embedded is not None, path, "it contains no word: its model had no EmbeddingWrapper when it was saved")
    good = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    require(good, path, "its key_value_params are not pairs of target inputs and target outputs")
    many = f"it edits {len(pairs)} projections, but this model has {2 * len(layers)}"
    require(len(pairs) == 2 * len(layers), path, f"{many}; {OTHER_BASE}")
    count = (shape_of(embedded) or (0,))[0]
    require(1 <= number <= count, path, f"it contains {count} concept{'s' * (count != 1)}, but number {number} was requested")

    def row(value: Any, name: str, size: int) -> Tensor:
        shape = shape_of(value)
        good = len(shape) == 2 and shape[0] == count
        require(good, path, f"its {name} has the shape {shape} instead of {(count, size)}")
        return checked(value[number - 1], name, (size,), path)

    def outputs(pairs: list) -> dict[str, Tensor]:
        named = {layer: row(pair[1], f"target output of {layer}", layers[layer]) for layer, pair in zip(order, pairs, strict=True)}
        return {layer: named[layer] for layer in layers}

    order = layer_order(layers, [shape_of(output)[-1:] for _, output in pairs], path)
    inputs = torch.stack([row(pair[0], "target input", width) for pair in pairs])
    target_input = inputs.double().mean(0).float()
    apart = float((inputs - target_input).norm(dim=1).max())
    same = apart <= ALIKE * float(target_input.norm())
    require(same, path, "the target inputs of its layers differ, but a concept has one for all layers")
    return {
        "word": row(embedded, "word", embedding)[None],
        "target_input": target_input,
        "keys": outputs(pairs[::2]),
        "values": outputs(pairs[1::2]),
        "superclass": "",
    }


def layer_order(layers: Mapping[str, int], widths: Sequence[tuple[int, ...]], path: Path) -> list[str]:
    """Return the layers in the order of another UNet's modules, deduced from the widths of to_k and to_v of each layer.

    The order is the host's own or that of diffusers, whose UNet has the middle block last. If the widths fit both, as in a model
    whose layers all have the same width, the host's order is returned.

    Raises:
        PerfusionError: about the file `path`: the widths fit neither order.
    """
    middle = [layer for layer in layers if layer.startswith("middle_block.")]
    for order in (list(layers), [layer for layer in layers if layer not in middle] + middle):
        if list(widths) == [(layers[layer],) for layer in order for _ in range(2)]:
            return order
    raise PerfusionError(f"{shown(path)} cannot be used: the widths of its projections are not those of this model; {OTHER_BASE}.")


def _chendaryen(
    found: Mapping[str, Any], path: Path, layers: Mapping[str, int], width: int, embedding: int, number: int
) -> dict[str, Any]:
    """Return the fields of a `Foreign` from a checkpoint of ChenDarYen's implementation."""
    require(number == 1, path, f"it contains 1 concept, but number {number} was requested")
    told = found["embedding"] if isinstance(found["embedding"], dict) else {}
    words = told.get("string_to_param")
    words = _stated(words, "_parameters")
    require(isinstance(words, dict) and len(words) == 1, path, "it does not contain the embedding of exactly one word")
    (word,) = words.values()
    count = (shape_of(word) or (0,))[0]
    many = f"its word has the shape {shape_of(word)} instead of 1 to {MAX_VECTORS} vectors"
    require(1 <= count <= MAX_VECTORS, path, many)
    named = found["target_output"]
    expected = {f"{layer}.{which}.target_output" for layer in layers for which in ("to_k", "to_v")}
    same = isinstance(named, dict) and set(named) == expected
    require(same, path, f"its target outputs are not those of this model's {len(layers)} layers; {OTHER_BASE}")

    def outputs(which: str) -> dict[str, Tensor]:
        names = {layer: f"{layer}.{which}.target_output" for layer in layers}
        return {layer: checked(named[name], name, (POSITIONS, layers[layer]), path) for layer, name in names.items()}

    return {
        "word": checked(word, "word", (count, embedding), path),
        "target_input": checked(found["target_input"], "target input", (width,), path),
        "keys": outputs("to_k"),
        "values": outputs("to_v"),
        "superclass": _first_text(told.get("initializer_words")),
    }


def _first_text(words: Any) -> str:
    """Return the first text of a list, or of an OmegaConf list of nodes; empty if it cannot be a superclass."""
    listed = _stated(words, "_content")
    text = _stated(listed[0], "_val") if isinstance(listed, list) and listed else ""
    return text.strip() if isinstance(text, str) and len(text) <= SUPERCLASS_LENGTH and text.isprintable() else ""


def _stated(value: Any, name: str) -> Any:
    """Return what an object of another library keeps under this name; any other value is returned as it is."""
    if not isinstance(value, Opaque):
        return value
    return value.state.get(name) if isinstance(value.state, dict) else None
