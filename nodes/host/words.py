"""Trigger words on the text side: a CLIP that knows them, and encodings that remember where they stood."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Stack, combine, with_outputs
from .models import encoders_of

Tokenizer = Any
"""A CLIP's tokenizer: an object that holds an `SDTokenizer` for each of its text encoders."""

Tokens = Mapping[str, list]
"""A tokenized prompt: encoder's letter -> sections -> (token or embedding vector, weight)."""


class Named(Tensor):
    """An encoding [B, N, d] that knows which trigger words can have reached its tokens.

    `named`: trigger word -> [B, N, 1], other than 0 where it can. Conditioning nodes mix, join and cut encodings with a few
    linear operations; the same are applied to `named`. After any other operation the result is a plain tensor.
    """

    named: dict[str, Tensor]
    LINEAR = frozenset("mul add sub div cat concat getitem rmul radd truediv narrow repeat expand clone to cpu contiguous".split())

    @classmethod
    def of(cls, encoding: Tensor, named: dict[str, Tensor]) -> "Named":
        """The encoding with its knowledge."""
        result = encoding.as_subclass(cls)
        result.named = named
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
            triggers = {trigger for tensor in _tensors((args, kwargs)) for trigger in getattr(tensor, "named", {})}
            try:
                named = {t: func(*_shadow(args, t, plain), **_shadow(kwargs, t, plain)) for t in triggers}
            except (RuntimeError, IndexError):
                return result
            return Named.of(result, named) if all(v.shape[:2] == result.shape[:2] for v in named.values()) else result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _shadow(value: Any, trigger: str, plain: float) -> Any:
    """Arguments of an operation on encodings as those of the same on one trigger's `named`."""
    if isinstance(value, Tensor) and value.ndim == 3:
        named = getattr(value, "named", {})
        if trigger in named:
            return named[trigger]
        return torch.full((*value.shape[:2], 1), plain if not isinstance(value, Named) else 0.0, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(_shadow(item, trigger, plain) for item in value)
    return {k: _shadow(v, trigger, plain) for k, v in value.items()} if isinstance(value, dict) else value


class _KnowsWords:
    """Mixed into a copy of the host's tokenizer: trigger words enter as the host's own embeddings do.

    `words`: trigger word -> its embedding vectors [n, width].
    """

    words: dict[str, Tensor]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        for i, trigger in enumerate(self.words):
            text = re.sub(re.escape(trigger), f" {self.embedding_identifier}perfusion-word-{i} ", text, flags=re.IGNORECASE)
        return super().tokenize_with_weights(text, *args, **kwargs)

    def _try_get_embedding(self, embedding_name: str) -> tuple[Tensor | None, str, str]:
        name, _, rest = embedding_name.strip().partition(" ")
        match = re.fullmatch(r"perfusion-word-(\d+)", name)
        if match and int(match[1]) < len(self.words):
            return list(self.words.values())[int(match[1])], name, rest.strip()
        return super()._try_get_embedding(embedding_name)


def tokenizer_with_words(tokenizer: Tokenizer, words: Mapping[str, Mapping[str, Tensor]]) -> Tokenizer:
    """A copy of a CLIP's tokenizer that knows more words: trigger -> encoder's name -> vectors [n, width]."""
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


def places_of(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Trigger word -> bool [N], where its vectors stand in a tokenized prompt."""
    found: dict[str, Tensor] = {}
    for part in vars(tokenizer).values():
        if not isinstance(part, _KnowsWords):
            continue
        storages = {vectors.untyped_storage().data_ptr(): trigger for trigger, vectors in part.words.items()}
        for sections in tokens.values():
            row = [token[0] for section in sections for token in section]
            for n, token in enumerate(row):
                trigger = storages.get(token.untyped_storage().data_ptr()) if isinstance(token, Tensor) else None
                if trigger is not None:
                    found.setdefault(trigger, torch.zeros(len(row), dtype=torch.bool))[n] = True
    return found


class ClipWithWords(CLIP):
    """A CLIP that knows the trigger words of `stack`; its encodings are `Named`."""

    stack: Stack = ()

    def clone(self, *args: Any, **kwargs: Any) -> "ClipWithWords":  # noqa: D102
        cloned = super().clone(*args, **kwargs)
        cloned.__class__ = ClipWithWords
        cloned.stack = self.stack
        return cloned

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False) -> Any:  # noqa: D102
        out = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if return_dict:
            return out | {"cond": self._name(out["cond"], tokens)}
        return (self._name(out[0], tokens), *out[1:]) if return_pooled else self._name(out, tokens)

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **kwargs: Any) -> list[list]:  # noqa: D102
        return [[self._name(cond, tokens), *rest] for cond, *rest in super().encode_from_tokens_scheduled(tokens, *args, **kwargs)]

    def _name(self, cond: Tensor, tokens: Tokens) -> Tensor:
        """A word reaches its own token and, the encoders being causal, those after it in the same section.

        For words alone, which edit nothing, nobody asks where they stand.
        """
        editing = {concept.trigger for concept in with_outputs(self.stack)}
        if isinstance(cond, Named) or not editing:
            return cond
        section = len(next(iter(tokens.values()))[0])
        named = {}
        for trigger, places in places_of(tokens, self.tokenizer).items():
            if trigger not in editing:
                continue
            reached = torch.cat([part.cumsum(0) > 0 for part in places.split(section)])[: cond.shape[1]]
            named[trigger] = reached.to(cond.device, torch.float32)[None, :, None].expand(cond.shape[0], -1, 1)
        return Named.of(cond, named)


def clip_with_words(clip: CLIP, stack: Stack) -> ClipWithWords:
    """A clone of a CLIP that also knows the trigger words of the concepts.

    Raises:
        PerfusionError: a concept's word was learned for other text encoders.
    """
    encoders = encoders_of(clip)
    for concept in stack:
        for name, tokenizer in encoders.items():
            if name not in concept.word or concept.word[name].shape[1] != tokenizer.embedding_size:
                raise PerfusionError(
                    f"{concept.trigger} was taught to text encoders {', '.join(concept.word)}; this CLIP has {', '.join(encoders)}."
                )
    cloned = clip.clone()
    cloned.__class__ = ClipWithWords
    cloned.tokenizer = tokenizer_with_words(clip.tokenizer, {concept.trigger: concept.word for concept in stack})
    cloned.stack = combine(getattr(clip, "stack", ()), stack)
    return cloned
