"""What a text encoding carries beside its numbers: where words stand, what they reach, what keys are made of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Note(NamedTuple):
    """What an encoding can know of itself, beside its numbers [B, N, d].

    `kind` REACH: [B, N, 1], other than 0 at the tokens that the trigger word `name` can have reached.
    `kind` PLACE: [B, N, 1], other than 0 where the word `name` itself stands.
    `kind` KEYS: [B, N, d], the encoding that the keys are made of under global key-locking (§4.1).
    """

    kind: str
    name: str = ""


REACH, PLACE, KEYS = "reach", "place", "keys"


START, END = "<start>", "<end>"
"""What stands where no word does: before the words, and from the end token on."""


class Named(Tensor):
    """An encoding [B, N, d] that carries notes.

    Conditioning nodes mix, join and cut encodings with a few linear operations; the same are applied to the notes. After any
    other operation the result is a plain tensor.
    """

    notes: dict[Note, Tensor]
    LINEAR = frozenset("mul add sub div cat concat getitem rmul radd truediv narrow repeat expand clone to cpu contiguous".split())

    @classmethod
    def of(cls, encoding: Tensor, notes: dict[Note, Tensor]) -> "Named":
        """The encoding with its notes."""
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
            return Named.of(result, notes) if all(v.shape[:2] == result.shape[:2] for v in notes.values()) else result


def notes_of(encoding: Tensor, kind: str) -> dict[str, Tensor]:
    """Name -> note, for the notes of one kind that an encoding carries; empty for a plain tensor."""
    return {note.name: value for note, value in getattr(encoding, "notes", {}).items() if note.kind == kind}


def words_of(encoding: Tensor) -> list[str]:
    """What stands at each token of an encoding; empty texts for one that does not know."""
    said = [""] * encoding.shape[1]
    for word, places in notes_of(encoding, PLACE).items():
        for n in places[0, :, 0].nonzero().flatten().tolist():
            said[n] = said[n] or word
    return said


def marked(encoding: Tensor, kind: str, names: Sequence[str]) -> Tensor:
    """[B, N, J], 1 where the notes of these names are other than 0 for a token of the encoding [B, N, d], else 0."""
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
    """Arguments of an operation on encodings as those of the same on one of their notes."""
    if isinstance(value, Tensor) and value.ndim == 3:
        notes = getattr(value, "notes", {})
        if note in notes:
            return notes[note]
        if note.kind == KEYS:
            return value.as_subclass(Tensor)
        return torch.full((*value.shape[:2], 1), 0.0 if isinstance(value, Named) else plain, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(_shadow(item, note, plain) for item in value)
    return {k: _shadow(v, note, plain) for k, v in value.items()} if isinstance(value, dict) else value
