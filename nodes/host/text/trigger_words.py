"""Tokenizers that know trigger words, and where these are in a tokenized prompt."""

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ....perfusion_core import PerfusionError
from ....perfusion_core.prompts import replace_triggers
from ..model.families import encoders_of
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


BLANK = "\u0120"
"""What a piece of a word begins with if a space is before it, in vocabularies that count spaces."""


def counts_spaces(part: SDTokenizer) -> bool:
    """Whether a word is tokenized in another way behind a space, as Qwen's tokenizer does."""
    first = part.tokenizer(" a")["input_ids"][part.tokens_start]
    return str(part.inv_vocab.get(first, "")).startswith(BLANK)


def is_blank(part: SDTokenizer, token: int | Tensor) -> bool:
    """Whether a token is of spaces alone, in a vocabulary that counts them."""
    return not isinstance(token, Tensor) and not str(part.inv_vocab.get(token, "?")).strip(BLANK)


class _KnowsWords:
    """Mixin for a copy of the host's tokenizer: trigger words are inserted in the same way as the host's own embeddings.

    Attributes:
        words: trigger word -> its embedding vectors [n, width].
        spaced: whether the tokenizer counts spaces.
    """

    words: dict[str, Tensor]
    spaced: bool

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        names = {trigger: f" {self.embedding_identifier}perfusion-word-{i} " for i, trigger in enumerate(self.words)}
        found = super().tokenize_with_weights(replace_triggers(text, names), *args, **kwargs)
        # The spaces around an embedding's name, which the host asks for, are part of a plain word's first piece.
        return [list(self._without_blanks(section)) for section in found] if self.spaced else found

    def _without_blanks(self, section: list[tuple]) -> Iterator[tuple]:
        """Yield the tokens of a section without those of spaces alone before a vector."""
        kept: list[tuple] = []
        for token in section:
            if is_blank(self, token[0]):
                kept.append(token)
                continue
            if not isinstance(token[0], Tensor):
                yield from kept
            kept = []
            yield token
        yield from kept

    def _try_get_embedding(self, embedding_name: str) -> tuple:
        name, _, rest = embedding_name.strip().partition(" ")
        match = re.fullmatch(r"perfusion-word-(\d+)", name)
        if match and int(match[1]) < len(self.words):
            named = (name,) if embeddings_are_named() else ()
            return list(self.words.values())[int(match[1])], *named, rest if self.spaced else rest.strip()
        return super()._try_get_embedding(embedding_name)


class StandIn(int):
    """The id of a plain word's token where a trigger word is: of a superclass, in a prompt of which the model reads ids alone."""

    trigger: str

    @classmethod
    def of(cls, token: int, trigger: str) -> "StandIn":
        """Return the id of a token of a trigger word's superclass."""
        made = cls(token)
        made.trigger = trigger
        return made


class _NamesWords(_KnowsWords):
    """The same for a tokenizer that no text encoder belongs to; `words`: trigger word -> the ids of its superclass, [n, 1]."""

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        triggers = {ids.untyped_storage().data_ptr(): trigger for trigger, ids in self.words.items()}

        def plain(token: int | Tensor) -> int | Tensor:
            trigger = triggers.get(token.untyped_storage().data_ptr()) if isinstance(token, Tensor) else None
            return token if trigger is None else StandIn.of(int(token), trigger)

        found = super().tokenize_with_weights(text, *args, **kwargs)
        return [[(plain(token), *rest) for token, *rest in section] for section in found]


def tokenizer_with_words(clip: CLIP, words: Mapping[str, Mapping[str, Tensor]], superclasses: Mapping[str, str]) -> Tokenizer:
    """Return a copy of a CLIP's tokenizer that knows more words.

    Args:
        clip: the CLIP.
        words: trigger word -> encoder's name -> vectors [n, width].
        superclasses: trigger word -> superclass; its ids are given for the word to a tokenizer that no text encoder belongs to.
    """
    taught, encoders = copy.copy(clip.tokenizer), encoders_of(clip)
    for name, part in vars(clip.tokenizer).items():
        if isinstance(part, SDTokenizer):
            knowing, learned = copy.copy(part), name in encoders
            if not isinstance(part, _KnowsWords):
                kind = _KnowsWords if learned else _NamesWords
                knowing.__class__ = type(f"{type(part).__name__}WithWords", (kind, type(part)), {})
                knowing.embedding_directory = part.embedding_directory or []
                knowing.spaced = counts_spaces(part)
            new = {trigger: word[name] if learned else ids_of(part, superclasses[trigger]) for trigger, word in words.items()}
            knowing.words = getattr(part, "words", {}) | new
            setattr(taught, name, knowing)
    return taught


def ids_of(part: SDTokenizer, text: str) -> Tensor:
    """Return the ids of a text's tokens, int [n, 1], without the end.

    Raises:
        PerfusionError: the text has none, or an embedding among them.
    """
    found = list(own_tokens(part.tokenize_with_weights(literal(text)), part))
    if not found or any(isinstance(token, Tensor) for token in found):
        raise PerfusionError(
            "This model reads the superclass alongside the learned word, so the superclass must be a plain word, such as teddy; "
            f"{text[:60]!r} is not."
        )
    return torch.tensor(found)[:, None]


def own_tokens(sections: list, tokenizer: SDTokenizer) -> Iterator[int | Tensor]:
    """Yield the tokens of the text itself, between the start token, if there is one, and the end token of its sections."""
    for section in sections:
        for token, *_ in section[0 if tokenizer.start_token is None else 1 :]:
            if not isinstance(token, Tensor) and token == tokenizer.end_token:
                break
            yield token


def understood(tokens: Tokens) -> bool:
    """Return whether a tokenized prompt has the host's form; tokenizers of other packs return others."""
    return all(isinstance(token, tuple) for sections in tokens.values() for section in sections for token in section)


def trigger_masks(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return trigger word -> bool [N], true at the positions of its vectors in a tokenized prompt.

    Text encoders may be given different prompts; N is the length of the longest.
    """
    found: dict[str, Tensor] = {}
    tokens = {name: rows for name, rows in tokens.items() if not isinstance(getattr(tokenizer, name, None), _NamesWords)}
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


def token_labels(tokens: Tokens, tokenizer: Tokenizer, ids: str = "") -> list[str]:
    """Return a label for each position of a tokenized prompt: a word in lower case, a trigger word, "embedding", START or END.

    The positions are those of the ids of this name, or of the first text encoder's tokens if there is no name.
    """
    rows = tokens[ids] if ids else next(iter(tokens.values()))
    part = getattr(tokenizer, ids, None) or next(part for part in vars(tokenizer).values() if isinstance(part, SDTokenizer))
    triggers = {} if ids else trigger_masks(tokens, tokenizer)
    said: list[str] = []
    for section in rows:
        ended, first = False, len(said)
        for token in section:
            piece = token[0]
            stands = (trigger for trigger, places in triggers.items() if places[len(said)])
            trigger = piece.trigger if isinstance(piece, StandIn) else next(stands, None)
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
