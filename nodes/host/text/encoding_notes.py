"""Notes attached to a text encoding: where words stand, which tokens trigger words reach, and what keys and regions read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Note(NamedTuple):
    """Identifies a tensor that an encoding [B, N, d] can carry in addition to its values.

    `kind` REACH: [B, N, 1], nonzero at the tokens that the trigger word `name` can have reached.
    `kind` WORD_POSITIONS: [B, N, 1], nonzero at the tokens of the word `name` itself.
    `kind` KEYS: [B, N, d], the encoding from which keys are computed under global key-locking (§4.1).
    `kind` REGIONAL: [B, N, d], the encoding that the region of the concept `name` reads, or what lies outside of all regions if
        `name` is empty; without this note it reads the encoding itself.
    """

    kind: str
    name: str = ""


TRIGGER_INFLUENCE, WORD_POSITIONS, KEYS, REGIONAL = "reach", "place", "keys", "regional"


START, END = "<start>", "<end>"
"""Labels of the positions without a word: before the first word, and from the end token on."""


class AnnotatedEncoding(Tensor):
    """An encoding [B, N, d] that carries notes.

    Conditioning nodes mix, concatenate and slice encodings with a few linear operations, which are applied to the notes as well.
    Any other operation returns a plain tensor.
    """

    notes: dict[Note, Tensor]
    LINEAR = frozenset("mul add sub div cat concat getitem rmul radd truediv narrow repeat expand clone to cpu contiguous".split())

    @classmethod
    def of(cls, encoding: Tensor, notes: dict[Note, Tensor]) -> "AnnotatedEncoding":
        """Return the encoding with these notes attached."""
        result = encoding.as_subclass(cls)
        result.notes = notes
        return result

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            name = func.__name__.strip("_")
            if name not in cls.LINEAR or not isinstance(result, Tensor) or result.ndim != 3:
                return result
            plain = 1.0 if name in ("mul", "rmul", "div", "truediv") else 0.0
            known = {note for tensor in _tensors((args, kwargs)) for note in getattr(tensor, "notes", {})}
            try:
                notes = {n: func(*_shadow(args, n, plain), **_shadow(kwargs, n, plain)) for n in known}
            except (RuntimeError, IndexError):
                return result
            return AnnotatedEncoding.of(result, notes) if all(v.shape[:2] == result.shape[:2] for v in notes.values()) else result


def notes_of(encoding: Tensor, kind: str) -> dict[str, Tensor]:
    """Return name -> note for the notes of one kind that an encoding carries; empty for a plain tensor."""
    return {note.name: value for note, value in getattr(encoding, "notes", {}).items() if note.kind == kind}


def token_words(encoding: Tensor) -> list[str]:
    """Return the word at each token of an encoding; empty strings if the encoding carries no WORD_POSITIONS notes."""
    said = [""] * encoding.shape[1]
    for word, places in notes_of(encoding, WORD_POSITIONS).items():
        for n in places[0, :, 0].nonzero().flatten().tolist():
            said[n] = said[n] or word
    return said


def note_mask(encoding: Tensor, kind: str, names: Sequence[str]) -> Tensor:
    """Return [B, N, J], 1 where the note of each of J names is nonzero at a token of the encoding [B, N, d], else 0."""
    known = notes_of(encoding, kind)
    blank = torch.zeros(*encoding.shape[:2], 1, device=encoding.device)
    return (torch.cat([known[name].to(encoding.device) if name in known else blank for name in names], dim=2) != 0).float()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _shadow(value: Any, note: Note, plain: float) -> Any:
    """Return the arguments of an operation on encodings with each encoding replaced by its `note`.

    For an encoding that lacks the note this is the encoding itself if the note is an encoding too; otherwise it is filled with 0 if
    the encoding carries notes, and with `plain` if it is a plain tensor.
    """
    if isinstance(value, Tensor) and value.ndim == 3:
        notes = getattr(value, "notes", {})
        if note in notes:
            return notes[note]
        if note.kind in (KEYS, REGIONAL):
            return value.as_subclass(Tensor)
        return torch.full((*value.shape[:2], 1), 0.0 if isinstance(value, AnnotatedEncoding) else plain, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(_shadow(item, note, plain) for item in value)
    return {k: _shadow(v, note, plain) for k, v in value.items()} if isinstance(value, dict) else value
