"""Tokenizers that know trigger words, and where these are in a tokenized prompt."""

import copy
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ....perfusion_core.prompts import replace_triggers
from .encoding_notes import END, START

Tokenizer = Any
"""A CLIP's tokenizer: an object with an `SDTokenizer` for each of the text encoders."""


Tokens = Mapping[str, list]
"""A tokenized prompt: letter of the text encoder -> sections -> (token or embedding vector, weight)."""


def literal(text: str) -> str:
    """Escape the parentheses in a text, so that they are not parsed as weights."""
    return re.sub(r"([()])", r"\\\1", text)


@cache
def embeddings_are_named() -> bool:
    """Whether the host returns (embedding, its name, remaining text); older versions return no name."""
    asked = SDTokenizer.__new__(SDTokenizer)  # skips __init__: neither a vocabulary nor embedding folders are needed
    asked.embedding_directory, asked.embedding_size, asked.embedding_key = [], 0, ""
    return len(asked._try_get_embedding("none")) == 3


class _KnowsWords:
    """Mixin for a copy of the host's tokenizer: trigger words are inserted in the same way as the host's own embeddings.

    Attributes:
        words: trigger word -> its embedding vectors [n, width].
    """

    words: dict[str, Tensor]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        names = {trigger: f" {self.embedding_identifier}perfusion-word-{i} " for i, trigger in enumerate(self.words)}
        return super().tokenize_with_weights(replace_triggers(text, names), *args, **kwargs)

    def _try_get_embedding(self, embedding_name: str) -> tuple:
        name, _, rest = embedding_name.strip().partition(" ")
        match = re.fullmatch(r"perfusion-word-(\d+)", name)
        if match and int(match[1]) < len(self.words):
            named = (name,) if embeddings_are_named() else ()
            return list(self.words.values())[int(match[1])], *named, rest.strip()
        return super()._try_get_embedding(embedding_name)


def tokenizer_with_words(tokenizer: Tokenizer, words: Mapping[str, Mapping[str, Tensor]]) -> Tokenizer:
    """Return a copy of a CLIP's tokenizer that knows more words; `words`: trigger -> encoder's name -> vectors [n, width]."""
    taught = copy.copy(tokenizer)
    for name, part in vars(tokenizer).items():
        if isinstance(part, SDTokenizer):
            knowing = copy.copy(part)
            if not isinstance(part, _KnowsWords):
                knowing.__class__ = type(f"{type(part).__name__}WithWords", (_KnowsWords, type(part)), {})
                knowing.embedding_directory = part.embedding_directory or []
            knowing.words = getattr(part, "words", {}) | {trigger: word[name] for trigger, word in words.items()}
            setattr(taught, name, knowing)
    return taught


def understood(tokens: Tokens) -> bool:
    """Return whether a tokenized prompt has the host's form; tokenizers of other packs return others."""
    return all(isinstance(token, tuple) for sections in tokens.values() for section in sections for token in section)


def trigger_masks(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return trigger word -> bool [N], true at the positions of its vectors in a tokenized prompt.

    Text encoders may be given different prompts; N is the length of the longest.
    """
    found: dict[str, Tensor] = {}
    length = max(sum(map(len, sections)) for sections in tokens.values())
    for part in vars(tokenizer).values():
        if not isinstance(part, _KnowsWords):
            continue
        storages = {vectors.untyped_storage().data_ptr(): trigger for trigger, vectors in part.words.items()}
        for sections in tokens.values():
            row = [token[0] for section in sections for token in section]
            for n, token in enumerate(row):
                trigger = storages.get(token.untyped_storage().data_ptr()) if isinstance(token, Tensor) else None
                if trigger is not None:
                    found.setdefault(trigger, torch.zeros(length, dtype=torch.bool))[n] = True
    return found


def token_labels(tokens: Tokens, tokenizer: Tokenizer) -> list[str]:
    """Return a label for each position of a tokenized prompt: a word in lower case, a trigger word, "embedding", START or END."""
    rows = next(iter(tokens.values()))
    part = next(part for part in vars(tokenizer).values() if isinstance(part, SDTokenizer))
    triggers = trigger_masks(tokens, tokenizer)
    said: list[str] = []
    for section in rows:
        ended, first = False, len(said)
        for token in section:
            piece = token[0]
            trigger = next((t for t, places in triggers.items() if places[len(said)]), None)
            if trigger is not None:
                said.append(trigger)
            elif isinstance(piece, Tensor):
                said.append("embedding")
            elif piece in (part.start_token, part.end_token) or ended:
                ended = ended or len(said) > first or part.start_token is None
                said.append(END if ended else START)
            else:
                said.append(part.inv_vocab.get(piece, "?"))
    return _whole(said)


def prompt_tokens(tokens: Tokens, tokenizer: Tokenizer) -> Tensor:
    """Return the positions of a tokenized prompt that are not padding, bool [N]: up to the first end token of each section."""
    rows = next(iter(tokens.values()))
    part = next(part for part in vars(tokenizer).values() if isinstance(part, SDTokenizer))
    found = []
    for section in rows:
        ends = [n for n, (piece, *_) in enumerate(section) if not isinstance(piece, Tensor) and piece == part.end_token]
        found.append(torch.arange(len(section)) <= next(iter(ends), len(section)))
    return torch.cat(found)


SPACE = "\u2581"
"""What the first piece of a word begins with, in vocabularies that mark beginnings."""


def _whole(pieces: list[str]) -> list[str]:
    """Replace each piece of a word by the whole word: its last piece ends in `</w>`, or its first one begins with SPACE."""
    if any(piece.startswith(SPACE) for piece in pieces):
        return _whole_from_beginnings(pieces)
    words, begin = list(pieces), 0
    for i, piece in enumerate(pieces):
        if piece.endswith("</w>"):
            words[begin : i + 1] = ["".join(pieces[begin : i + 1]).removesuffix("</w>")] * (i + 1 - begin)
        if piece.endswith(("</w>", ">")) or piece == "embedding":
            begin = i + 1
    return words


def _whole_from_beginnings(pieces: list[str]) -> list[str]:
    """Return the same as `_whole` for pieces where the first one of a word begins with SPACE."""
    words, begin, apart = [], 0, True
    for i, piece in enumerate(pieces):
        before, apart = apart, piece in (START, END, "embedding") or (piece.startswith("<") and piece.endswith(">"))
        if before or apart or piece.startswith(SPACE):
            begin = i
        whole = piece if apart else "".join(pieces[begin : i + 1]).removeprefix(SPACE).lower()
        words[begin:] = [whole] * (i + 1 - begin)
    return words
