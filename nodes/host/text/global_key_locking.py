"""Text side of global key-locking (§4.1): a prompt is encoded twice, with its trigger words and with their superclasses."""

from collections.abc import Mapping, Sequence

import torch
from comfy.sd import CLIP
from torch import Tensor

from ....perfusion_core import PerfusionError
from ....perfusion_core.prompts import replace_triggers
from ..model.families import encoders_of
from .annotated_encoding import KEYS, Note
from .clip_with_words import ClipWithWords, clip_with_words
from .encoding_notes import with_notes
from .trigger_words import Tokens, counts_spaces, literal, own_tokens, trigger_masks


def encode_locked(clip: CLIP, text: str) -> list[list]:
    """Return a prompt's conditioning; if it contains trigger words, it carries the superclass prompt's encoding as its KEYS note.

    The two encodings are aligned token by token. A word with as many vectors as its superclass has tokens needs no adjustment.
    Otherwise vectors and tokens are matched from the last one backwards (the last token has attended to those before it), and
    surplus vectors are matched with the first token.

    Raises:
        PerfusionError: the two prompts are split into sections at different words and cannot be aligned.
    """
    knowing = clip if isinstance(clip, ClipWithWords) else clip_with_words(clip, ())
    superclasses = {concept.trigger: concept.superclass for concept in knowing.stack}
    tokens = knowing.tokenize(text)
    encoded = knowing.encode_from_tokens_scheduled(tokens)
    marks = trigger_masks(tokens, knowing.tokenizer)
    if not marks:
        return encoded
    apart = "" if any(map(counts_spaces, encoders_of(knowing).values())) else " "
    plain = {trigger: f"{apart}{literal(word)}{apart}" for trigger, word in superclasses.items()}
    others = knowing.tokenize(replace_triggers(text, plain))
    index = alignment(tokens, others, marks, {t: _length(knowing, superclasses[t]) for t in marks})
    keys = knowing.encode_from_tokens_scheduled(others)
    return [
        [with_notes(cond, {Note(KEYS): key.as_subclass(Tensor)[:, index]}), *rest]
        for (cond, *rest), (key, *_) in zip(encoded, keys, strict=True)
    ]


def _length(clip: CLIP, text: str) -> int:
    """Return the number of tokens of a word in a prompt."""
    part = next(iter(encoders_of(clip).values()))
    tokens = clip.tokenize(f" {literal(text)}" if counts_spaces(part) else literal(text))
    return len(list(own_tokens(next(iter(tokens.values())), part)))


def alignment(worded: Tokens, plain: Tokens, marks: Mapping[str, Tensor], lengths: Mapping[str, int]) -> Tensor:
    """Return, for each position of the worded prompt, the corresponding position of the plain one, int [N].

    Args:
        worded: the prompt with trigger words.
        plain: the prompt with their superclasses.
        marks: trigger word -> bool [N], true at the positions of its vectors in `worded`.
        lengths: trigger word -> number of tokens of its superclass.

    Raises:
        PerfusionError: a word is in different sections of the two prompts.
    """
    rows, others = next(iter(worded.values())), next(iter(plain.values()))
    names = [next((t for t, places in marks.items() if places[n]), "") for n in range(sum(map(len, rows)))]
    index: list[int] = []
    for row, other in zip(rows, others, strict=False):
        begin = len(index)
        index += [begin + i for i in _aligned(row, other, names[begin : begin + len(row)], lengths)]
    if len(index) < len(names) or len(others) != len(rows):
        raise _unaligned(lengths)
    return torch.tensor(index)


def _aligned(row: Sequence, other: Sequence, names: Sequence[str], lengths: Mapping[str, int]) -> list[int]:
    """Return the alignment of one section, with positions relative to its start; see `alignment`."""
    index, at, i = [], 0, 0
    while i < len(row):
        if names[i]:
            here = _vectors(row, names, i)
            there = lengths[names[i]]
            index += [at + max(0, there - here + k) for k in range(here)]
            at, i = at + there, i + here
            continue
        # Past the end there is only padding, and its last token represents all of it.
        place = min(at, len(other) - 1)
        if not _same(row[i][0], other[place][0]):
            raise _unaligned(lengths)
        index.append(place)
        at, i = at + 1, i + 1
    return index


def _vectors(row: Sequence, names: Sequence[str], i: int) -> int:
    """Return the number of vectors of the word that begins at position i; the same word may follow immediately."""
    storage, first = row[i][0].untyped_storage().data_ptr(), row[i][0].data_ptr()
    count = 1
    while i + count < len(row) and names[i + count] == names[i]:
        vector = row[i + count][0]
        if vector.untyped_storage().data_ptr() != storage or vector.data_ptr() == first:
            break
        count += 1
    return count


def _same(token: int | Tensor, other: int | Tensor) -> bool:
    if isinstance(token, Tensor) and isinstance(other, Tensor):
        return torch.equal(token, other)
    return not isinstance(token, Tensor) and not isinstance(other, Tensor) and token == other


def _unaligned(lengths: Mapping[str, int]) -> PerfusionError:
    told = "trigger words {} replaced by their superclasses" if len(lengths) > 1 else "trigger word {} replaced by its superclass"
    return PerfusionError(
        f"With the {told.format(' and '.join(lengths))}, this long prompt would be split at a different word, so keys and values "
        "would not line up; shorten it, or encode it with CLIP Text Encode."
    )
