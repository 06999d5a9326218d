"""An encoding that records what it was computed from, so that its notes stay valid whatever other nodes do to it.

Every torch operation on it is recorded with its arguments, and nothing is computed until a note is requested. A note is then found
by computing the encoding again, from originals that differ in what the note is about. Whatever cannot be recorded (NumPy, pickle)
returns a plain tensor, for which `named_tokens` decides by similarity.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Note(NamedTuple):
    """Identifies what an encoding [B, N, d] can carry in addition to its values.

    `kind` TRIGGER_INFLUENCE: bool, the elements that the trigger word `name` can have influenced.
    `kind` WORD_POSITIONS: bool, the elements at the tokens of the word `name` itself.
    `kind` KEYS: the encoding from which keys are computed under global key-locking (§4.1).
    `kind` REGIONAL: the encoding that the region of the concept `name` reads, or what lies outside of all regions if `name` is
        empty; without this note it reads the encoding itself.
    """

    kind: str
    name: str = ""


TRIGGER_INFLUENCE, WORD_POSITIONS, KEYS, REGIONAL = "reach", "place", "keys", "regional"
MARKS = (TRIGGER_INFLUENCE, WORD_POSITIONS, "origin")
"""The kinds whose notes are marks; those of the other kinds are encodings."""
ORIGIN = Note("origin")
"""Marks what was computed from encodings with notes; they all carry it."""

FORGETTING = frozenset({"as_subclass", "linear", "scaled_dot_product_attention"})
"""Functions whose results are plain tensors: they are no longer encodings, or are meant to be plain."""
MIXING = frozenset("matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm einsum tensordot inner".split())
"""Functions whose result is an encoding only if it has the shape of one of their arguments."""
IN_PLACE = frozenset(f"__{name}__" for name in "setitem iadd isub imul itruediv ifloordiv imod ipow".split())


@dataclass(frozen=True, eq=False)
class Original:
    """The origin of a text encoder's output: the encoding, and its notes, which broadcast to it."""

    encoding: Tensor
    notes: Mapping[Note, Tensor]

    def replaced_by(self, note: Note | None) -> Tensor:
        """Return the encoding, changed where `note` marks it, or the encoding that `note` replaces it with."""
        if note not in self.notes:
            return self.encoding
        if note.kind not in MARKS:
            return self.notes[note].to(self.encoding)
        # Every element changes differently, or subtracting a mean would remove the change.
        more = torch.linspace(1, 2, self.encoding.numel(), device=self.encoding.device).to(self.encoding.dtype)
        other = self.encoding + more.reshape(self.encoding.shape)
        return torch.where(self.notes[note].to(self.encoding.device), other, self.encoding)


@dataclass(frozen=True, eq=False)
class Derived:
    """The origin of a function's result: the function, its arguments, and which of several results it is.

    In the arguments each annotated encoding is replaced by its origin, so that later changes to it do not matter.
    """

    func: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    place: int = 0

    def parents(self) -> list["Origin"]:
        """Return the origins among the arguments."""
        return [each for each in _leaves((self.args, self.kwargs)) if not isinstance(each, Tensor)]

    def run(self, values: Mapping["Origin", Tensor]) -> Tensor:
        """Compute the result again, from the `values` of origins."""
        changes = _is_in_place(self.func, self.kwargs)

        def value(leaf: "Tensor | Origin") -> Tensor:
            found = leaf if isinstance(leaf, Tensor) else values[leaf]
            return found.clone() if changes else found

        args, kwargs = _mapped((self.args, self.kwargs), value)
        result = self.func(*args, **kwargs)
        return kwargs.get("out", args[0]) if changes else list(_leaves(result))[self.place]


Origin = Original | Derived


class AnnotatedEncoding(Tensor):
    """A tensor computed from encodings with notes."""

    origin: Origin

    @classmethod
    def of(cls, encoding: Tensor, notes: Mapping[Note, Tensor]) -> "AnnotatedEncoding":
        """Return the encoding with these notes and no others."""
        plain = encoding.as_subclass(Tensor)
        return cls._from(plain, Original(plain, {**notes, ORIGIN: torch.ones(1, dtype=torch.bool)}))

    @classmethod
    def _from(cls, tensor: Tensor, origin: Origin) -> "AnnotatedEncoding":
        result = tensor.as_subclass(cls)
        result.origin = origin
        return result

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            changes = _is_in_place(func, kwargs)
            given = _mapped((args, kwargs), lambda leaf: _recorded(leaf, changes))
            result = func(*args, **kwargs)
            if changes:
                return cls._changed(kwargs.get("out", args[0]), result, Derived(func, *given))
            if func.__name__ in FORGETTING:
                return result
            shapes = [each.shape for each in _leaves((args, kwargs))] if func.__name__ in MIXING else None
            if isinstance(result, Tensor):
                return cls._from(result, Derived(func, *given)) if _is_encoding(result, shapes) else result
            if type(result) not in (list, tuple):
                return result
            places = enumerate(result)
            return type(result)(cls._from(t, Derived(func, *given, i)) if _is_encoding(t, None) else t for i, t in places)

    @classmethod
    def _changed(cls, target: Tensor, result: Any, origin: Derived) -> Any:
        """Return what an operation on `target` in place returns. For a plain tensor, only the returned one records its origin."""
        if isinstance(target, cls):
            target.origin = origin
            return result
        return cls._from(target, origin) if result is target else result

    def __deepcopy__(self, memo: dict) -> "AnnotatedEncoding":
        return memo.setdefault(id(self), self._from(self.as_subclass(Tensor).clone(), self.origin))

    def __copy__(self) -> "AnnotatedEncoding":
        return self._from(self.as_subclass(Tensor), self.origin)

    def __reduce_ex__(self, protocol: int) -> Any:
        # A plain tensor in files, so that they can be read without this pack, and with `weights_only`.
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def known_notes(encoding: Tensor) -> list[Note]:
    """Return the notes that an encoding can carry; empty for a plain tensor."""
    ancestry = _ancestry(encoding.origin) if isinstance(encoding, AnnotatedEncoding) else []
    notes = (note for each in ancestry if isinstance(each, Original) for note in each.notes)
    return [note for note in dict.fromkeys(notes) if note != ORIGIN]


def note_of(encoding: AnnotatedEncoding, note: Note) -> Tensor:
    """Return a note of an encoding, of the encoding's shape.

    Where an operation cannot be repeated, a mark is set everywhere: the gates alone then decide.
    """
    try:
        with torch.no_grad():
            found = _computed_again(encoding.origin, note)
            if note.kind not in MARKS:
                return found
            plain = _computed_again(encoding.origin, None)
        return (found != plain) & ~(found.isnan() & plain.isnan())
    except (RuntimeError, TypeError, ValueError, IndexError):
        plain = encoding.as_subclass(Tensor)
        return torch.ones_like(plain, dtype=torch.bool) if note.kind in MARKS else plain


def _computed_again(origin: Origin, note: Note | None) -> Tensor:
    """Compute an encoding from originals that are changed where `note` marks them, or replaced by it; None: as they are."""
    values: dict[Origin, Tensor] = {}
    for each in _ancestry(origin):
        values[each] = each.replaced_by(note) if isinstance(each, Original) else each.run(values)
    return values[origin]


def _ancestry(origin: Origin) -> list[Origin]:
    """Return an origin and all that it was computed from, each after those that it was computed from."""
    found: dict[Origin, None] = {}
    waiting = [origin]
    while waiting:
        one = waiting[-1]
        missing = [parent for parent in one.parents() if parent not in found] if isinstance(one, Derived) else []
        waiting += missing
        if not missing:
            found[waiting.pop()] = None
    return list(found)


def _recorded(leaf: Tensor, changes: bool) -> "Tensor | Origin":
    """Return what is recorded for an argument; a plain tensor is copied if it is about to change."""
    if isinstance(leaf, AnnotatedEncoding):
        return leaf.origin
    return leaf.clone() if changes else leaf


def _is_in_place(func: Callable, kwargs: Mapping[str, Any]) -> bool:
    name = func.__name__
    return name in IN_PLACE or "out" in kwargs or (name.endswith("_") and not name.endswith("__"))


def _is_encoding(value: Any, shapes: list[torch.Size] | None) -> bool:
    """Whether a result can be (part of) an encoding: not a mean, a norm or a comparison; of one of `shapes` unless None."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim or value.shape[-1] == 1:
        return False
    return shapes is None or value.shape in shapes


def _leaves(value: Any) -> "Iterator[Tensor | Origin]":
    if isinstance(value, Tensor | Original | Derived):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)


def _mapped(value: Any, change: Callable) -> Any:
    """Return `value` with all leaves in it changed."""
    if isinstance(value, Tensor | Original | Derived):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return type(value)(_mapped(item, change) for item in value) if type(value) in (list, tuple) else value
