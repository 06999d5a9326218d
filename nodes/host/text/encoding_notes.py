"""What the notes of an encoding say: where words are, which tokens trigger words reach, and what keys and regions read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .annotated_encoding import ORIGIN, WORD_POSITIONS, AnnotatedEncoding, Note, known_notes, note_of

START, END = "<start>", "<end>"
"""Labels of the positions without a word: before the first word, and from the end token on."""


def with_notes(encoding: Tensor, more: dict[Note, Tensor]) -> AnnotatedEncoding:
    """Return an encoding with further notes."""
    kept = {note: note_of(encoding, note) for note in known_notes(encoding)}
    return AnnotatedEncoding.of(encoding.as_subclass(Tensor), kept | more)


def notes_of(encoding: Tensor, kind: str) -> dict[str, Tensor]:
    """Return name -> note for the notes of one kind that an encoding carries; empty for a plain tensor."""
    return {note.name: note_of(encoding, note) for note in known_notes(encoding) if note.kind == kind}


def note_mask(encoding: Tensor, kind: str, names: Sequence[str]) -> Tensor:
    """Return [B, N, J], 1 at the tokens of an encoding [B, N, d] that the note of each of J names marks, else 0."""
    known, found = known_notes(encoding), []
    for name in names:
        note = Note(kind, name)
        blank = torch.zeros(encoding.shape[:2], dtype=torch.bool, device=encoding.device)
        found.append(note_of(encoding, note).any(2) if note in known else blank)
    return torch.stack(found, 2).float()


def known_tokens(encoding: Tensor) -> Tensor:
    """Return [B, N, 1], whether it is known what each token of an encoding [B, N, d] was computed from, bool."""
    if not isinstance(encoding, AnnotatedEncoding):
        return torch.zeros(*encoding.shape[:2], 1, dtype=torch.bool, device=encoding.device)
    return note_of(encoding, ORIGIN).any(2, keepdim=True)


def token_words(encoding: Tensor) -> list[str]:
    """Return the word at each token of an encoding; empty strings if the encoding carries no WORD_POSITIONS notes."""
    said = [""] * encoding.shape[1]
    for word, places in notes_of(encoding, WORD_POSITIONS).items():
        for n in places[0].any(1).nonzero().flatten().tolist():
            said[n] = said[n] or word
    return said
